//! Draws calls over time as an SVG.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 30.0;
/// The decades of the logarithmic scale.
const DECADES: u32 = 5;

/// `calls`: those of each second. `marks`: seconds with a label.
pub(super) fn draw(title: &str, calls: &[u32], marks: &[(u64, &str)]) -> String {
    let x = |second: f64| LEFT + second / calls.len() as f64 * (WIDTH - LEFT - 10.0);
    let y = |calls: f64| {
        let share = calls.max(0.5).log10().max(-0.3) / f64::from(DECADES);
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">{title}</text>\n"
    );
    for decade in 0..=DECADES {
        let value = 10_u32.pow(decade);
        let at = y(value.into());
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let step = if calls.len() > 200 { 60 } else { 10 };
    for second in (0..calls.len()).step_by(step) {
        let label = if step == 60 { format!("{} min", second / 60) } else { format!("{second} s") };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            x(second as f64),
            HEIGHT - BOTTOM + 18.0
        );
    }
    for (second, label) in marks {
        let at = x(*second as f64);
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#c33\" stroke-dasharray=\"4 3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#c33\">{label}</text>",
            HEIGHT - BOTTOM,
            at + 4.0,
            TOP + 10.0
        );
    }
    let mut line = String::new();
    for (second, calls) in calls.iter().enumerate() {
        let command = if second == 0 { 'M' } else { 'L' };
        let _ = write!(line, "{command}{:.1} {:.1}", x(second as f64), y(f64::from(*calls)));
    }
    let _ =
        writeln!(svg, "<path d=\"{line}\" fill=\"none\" stroke=\"#26c\" stroke-width=\"1.2\"/>");
    svg.push_str("</svg>\n");
    svg
}
