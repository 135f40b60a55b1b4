//! QR codes as inline SVG.

use std::fmt::Write;

use fast_qr::{ECL, QRBuilder};

/// Empty modules around the code, without which cameras do not find it.
const MARGIN: usize = 4;

/// The text as an SVG image of one path; `None`: the text is too long (about 2,900 bytes).
pub(super) fn svg(text: &str) -> Option<String> {
    // A screen has no scratches: the least error correction gives the largest modules.
    let code = QRBuilder::new(text).ecl(ECL::L).build().ok()?;
    let side = code.size + 2 * MARGIN;
    let mut path = String::new();
    for y in 0..code.size {
        let mut x = 0;
        while x < code.size {
            let run = code[y][x..].iter().take_while(|module| module.value()).count();
            if run > 0 {
                // Writing to a string does not fail.
                let _ = write!(path, "M{} {}h{run}v1h-{run}z", x + MARGIN, y + MARGIN);
            }
            x += run.max(1);
        }
    }
    Some(format!(
        "<svg id=\"qr\" role=\"img\" aria-label=\"QR code of the link\" \
         viewBox=\"0 0 {side} {side}\" shape-rendering=\"crispEdges\"><path fill=\"#fff\" d=\"M0 0h{side}v{side}H0z\"/>\
         <path fill=\"#10201f\" d=\"{path}\"/></svg>"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_starts_with_its_finder_pattern() {
        let svg = svg("http://127.0.0.1:8085/mobile").unwrap();
        // Inside of the margin: seven dark modules in a row, below them the sides of the pattern.
        assert!(svg.contains("d=\"M4 4h7v1h-7z"), "{svg}");
        assert!(svg.contains("M4 5h1v1h-1zM10 5h1v1h-1z"), "{svg}");
    }

    #[test]
    fn a_text_that_is_too_long_has_no_code() {
        assert!(svg(&"a".repeat(2_900)).is_some());
        assert!(svg(&"a".repeat(3_000)).is_none());
    }
}
