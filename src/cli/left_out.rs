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
