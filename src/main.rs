//! The `handoff` command.

use std::process::ExitCode;

use handoff::cli::{self, Cli};
use mimalloc::MiMalloc;

/// A request is hundreds of small allocations, and they are a fifth of its cost by the system's own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    // One thread does it all: serving a request is waiting, and waking up elsewhere costs more than
    // the work itself.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Of many answers that come at once, a few at a time are taken in, and then dealt with.
    runtime.enable_all().max_io_events_per_tick(64);
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("handoff: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(cli::run(cli));
    // What is still running in the background has nothing to tell any more.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handoff: {error}");
            error.exit_code()
        }
    }
}
