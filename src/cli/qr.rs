//! QR codes for the terminal.

use fast_qr::QRBuilder;

/// Draws a QR code in half blocks, or says that the text is too long for one.
pub(super) fn for_terminal(text: &str) -> String {
    match QRBuilder::new(text).build() {
        Ok(code) => code.to_str(),
        Err(_) => "(the link is too long for a QR code)".to_owned(),
    }
}
