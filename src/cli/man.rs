//! `handoff man`: the manual pages.

use std::io::{Write, stdout};

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::{Cli, CliError};

/// Prints a manual page
///
/// Without a command it is the page of handoff as a whole; commands within a command are given one
/// after the other.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff man | man -l -\n  \
    handoff man run | man -l -\n  \
    handoff man dead-letters replay > handoff-dead-letters-replay.1")]
pub(super) struct ManArgs {
    /// Which command's page
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(args: &ManArgs) -> Result<(), CliError> {
    let mut command = Cli::command();
    command.build();
    let mut page = &command;
    for name in &args.command {
        page = page.find_subcommand(name).ok_or_else(|| {
            CliError::Usage(format!("there is no command {name:?}; handoff --help lists them"))
        })?;
    }
    // Built, the page's command calls itself by its full name, such as `handoff run`.
    let name = page.get_bin_name().unwrap_or("handoff").replace(' ', "-");
    let mut text = Vec::new();
    Man::new(page.clone().name(name)).render(&mut text).map_err(CliError::failed)?;
    stdout().write_all(&text).map_err(CliError::failed)
}
