//! `handoff man`: prints manual pages.

use clap::{Args, Command};
use clap_mangen::Man;

use super::{errors::CliError, output::print_text};

/// Prints a manual page
///
/// Without a command, prints the page of handoff itself. For a command within a command, give both
/// names.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff man | man -l -\n  \
    handoff man run | man -l -\n  \
    handoff man dead-letters replay > handoff-dead-letters-replay.1")]
pub(super) struct ManArgs {
    /// The command
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(args: &ManArgs, mut command: Command) -> Result<(), CliError> {
    command.build();
    let mut page = &command;
    for name in &args.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            CliError::Usage(format!("there is no command {name:?}; handoff --help lists them"))
        })?;
    }
    // After `build`, the name includes the parent commands: `handoff run`.
    let name = page.get_bin_name().unwrap_or("handoff").replace(' ', "-");
    let mut text = Vec::new();
    Man::new(page.clone().name(name)).render(&mut text).map_err(CliError::failed)?;
    print_text(text)
}
