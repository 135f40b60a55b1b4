//! Results on stdout.

use std::{
    fmt,
    io::{Write, stdout},
};

use super::errors::CliError;

/// Prints a result and a newline. Fails where `println` panics: when stdout is closed.
pub(super) fn print_line(result: impl fmt::Display) -> Result<(), CliError> {
    writeln!(stdout(), "{result}").map_err(CliError::failed)
}

/// Prints a whole text.
pub(super) fn print_text(text: &str) -> Result<(), CliError> {
    stdout().write_all(text.as_bytes()).map_err(CliError::failed)
}
