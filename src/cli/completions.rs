//! `handoff completions`: what a shell needs to complete the command line.

use std::io::{Write, stdout};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError};

/// Prints completions for a shell
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff completions bash > ~/.local/share/bash-completion/completions/handoff\n  \
    handoff completions zsh > \"${fpath[1]}/_handoff\"\n  \
    handoff completions fish > ~/.config/fish/completions/handoff.fish")]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    // In memory first: the library does not take it well when whoever reads goes away.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "handoff", &mut script);
    stdout().write_all(&script).map_err(CliError::failed)
}
