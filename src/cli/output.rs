//! Results on stdout, and what people see on a terminal.

use std::{
    fmt,
    io::{IsTerminal, Write, stderr, stdout},
};

use fast_qr::QRBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::errors::CliError;
use crate::printable::escape_json;

/// Prints a result and a newline. Fails where `println` panics: when stdout is closed or full.
pub(super) fn print_line(result: impl fmt::Display) -> Result<(), CliError> {
    print_text(format!("{result}\n"))
}

/// Prints a whole text.
pub(super) fn print_text(text: impl AsRef<[u8]>) -> Result<(), CliError> {
    let mut stdout = stdout().lock();
    // The flush reports what the buffer of stdout would report to nothing at exit.
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).map_err(CliError::not_printed)
}

/// Prints a result as JSON: on a terminal with hostile characters escaped, else unchanged.
pub(super) fn print_json(json: &str) -> Result<(), CliError> {
    if stdout().is_terminal() { print_line(escape_json(json)) } else { print_line(json) }
}

/// Prints a note for people on stderr. `eprintln` would panic when stderr is closed or full.
pub(super) fn note(text: impl fmt::Display) {
    let _ = writeln!(stderr(), "{text}");
}

/// A JSON object of the fields that have a value.
pub(super) fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// A progress bar on stderr, in the form of an `indicatif` template. Hidden unless stderr is a
/// terminal.
pub(super) fn progress_bar(total: u64, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) if stderr().is_terminal() => ProgressBar::new(total).with_style(style),
        _ => ProgressBar::hidden(),
    }
}

/// Draws a QR code in half blocks, or says that the text is too long for one.
pub(super) fn qr_code(text: &str) -> String {
    match QRBuilder::new(text).build() {
        Ok(code) => code.to_str(),
        Err(_) => "(the link is too long for a QR code)".to_owned(),
    }
}
