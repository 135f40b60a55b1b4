//! The `handoff` command.

// These macros panic where stdout or stderr is closed or full.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

use handoff::cli::Cli;
use mimalloc::MiMalloc;
use tokio::runtime::{Builder, Runtime};

/// A request makes hundreds of small allocations: with glibc's allocator, a fifth of its cost.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let runtime = match build_runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            // `eprintln` would panic where stderr is closed or full.
            let _ = writeln!(stderr(), "handoff: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A command reads its settings, starts logging and runs; `run` drains on SIGTERM.
    let result = runtime.block_on(cli.run());
    // Does not wait for background tasks: everything that matters has finished.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// One thread: a request mostly waits, and waking another thread costs more than its work.
fn build_runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        // When many answers arrive at once, reads and handles them in groups of 64.
        .max_io_events_per_tick(64)
        .build()
}
