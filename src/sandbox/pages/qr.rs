//! QR codes as inline SVG.

use fast_qr::{
    ECL, QRBuilder,
    convert::{Builder, svg::SvgBuilder},
};

/// Draws a text as an SVG image. `None`: it is too long, at more than about 2,900 bytes.
pub(super) fn svg(text: &str) -> Option<String> {
    // A screen is neither scratched nor dirty. The least error correction gives the largest modules,
    // which are the easiest to scan.
    let code = QRBuilder::new(text).ecl(ECL::L).build().ok()?;
    Some(SvgBuilder::default().module_color("#10201f").to_str(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_margin_of_four_modules_and_a_finder_pattern() {
        let svg = svg("http://127.0.0.1:8085/mobile").unwrap();
        let row = |y: usize, columns: &[usize]| -> String {
            columns.iter().map(|x| format!("M{x},{y}h1v1h-1")).collect()
        };
        // The pattern's first row is seven dark modules, and only its sides are dark in the second.
        assert!(svg.contains(&format!("d=\"{}", row(4, &[4, 5, 6, 7, 8, 9, 10]))), "{svg}");
        assert!(svg.contains(&row(5, &[4, 10])), "{svg}");
    }

    #[test]
    fn a_text_that_is_too_long_has_no_code() {
        assert!(svg(&"a".repeat(2_900)).is_some());
        assert!(svg(&"a".repeat(3_000)).is_none());
    }
}
