//! `demo` and `sandbox` in a build without the simulated platform.

use std::ffi::OsString;

use super::errors::CliError;

/// Accepts the arguments of a command that this build does not have
#[derive(clap::Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(super) struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _ignored: Vec<OsString>,
}

pub(super) fn error() -> CliError {
    CliError::Usage(
        "this build has no simulated platform, so no commands `demo` and `sandbox`: use the published program, or \
         build it with the Cargo feature `sandbox`, which is on by default"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    #[tokio::test]
    async fn left_out_commands_say_how_to_get_them_and_are_not_in_the_help() {
        for arguments in ["demo", "demo --serve", "sandbox --addr 127.0.0.1:0", "sandbox --help"] {
            let arguments = std::iter::once("handoff").chain(arguments.split(' '));
            let Ok(cli) = Cli::try_parse_from(arguments) else { panic!("refused") };
            let Err(CliError::Usage(text)) = cli.run().await else { panic!("no error") };
            assert!(text.contains("Cargo feature `sandbox`"), "{text}");
        }
        let help = Cli::command().render_long_help().to_string();
        assert!(!help.contains("sandbox") && !help.contains("demo"), "{help}");
    }
}
