//! Results on stdout, and what people see on a terminal.

use std::{
    fmt,
    io::{IsTerminal, Write, stderr, stdout},
};

use fast_qr::QRBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::errors::CliError;

/// Prints a result and a newline. Fails where `println` panics: when stdout is closed.
pub(super) fn print_line(result: impl fmt::Display) -> Result<(), CliError> {
    writeln!(stdout(), "{result}").map_err(CliError::failed)
}

/// Prints a whole text.
pub(super) fn print_text(text: impl AsRef<[u8]>) -> Result<(), CliError> {
    stdout().write_all(text.as_ref()).map_err(CliError::failed)
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
