//! `handoff completions`: prints completion scripts.

use clap::{Args, Command};
use clap_complete::Shell;

use super::{errors::CliError, output::print_text};

/// Prints completions for a shell
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff completions bash > ~/.local/share/bash-completion/completions/handoff\n  \
    handoff completions zsh > \"${fpath[1]}/_handoff\"\n  \
    handoff completions fish > ~/.config/fish/completions/handoff.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, mut command: Command) -> Result<(), CliError> {
    // clap_complete 4.6 panics when a write fails, for example on a closed stdout
    // (clap-rs/clap#5457). A write to memory does not fail.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "handoff", &mut script);
    print_text(script)
}
