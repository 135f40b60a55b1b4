//! Text from other programs, made safe for terminals.

/// Escapes what a terminal would execute or reorder, such as `\u{1b}` for ESC.
///
/// That is control characters (C0, DEL and C1), line and paragraph separators, and characters that
/// change the direction of text or have no width.
pub(crate) fn escape(text: &str) -> String {
    replace(text, |_| false, |c, escaped| escaped.extend(c.escape_unicode()))
}

/// Escapes as [`escape`] does, but keeps the lines of a text that has several.
pub(crate) fn escape_lines(text: &str) -> String {
    replace(text, |c| c == '\n', |c, escaped| escaped.extend(c.escape_unicode()))
}

/// Escapes the same characters in JSON, as JSON does: `\u202e`. Parsers read the same value.
pub(crate) fn escape_json(json: &str) -> String {
    // Both are white space between values. Within strings, JSON has them escaped.
    let is_space = |c| matches!(c, '\n' | '\t');
    replace(json, is_space, |c, escaped| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

fn replace(text: &str, keep: fn(char) -> bool, escape: fn(char, &mut String)) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && !keep(c) {
            escape(c, &mut escaped);
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Keeps U+200C and U+200D, which Persian, Hindi and emojis need.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_text_are_kept() {
        assert_eq!(escape_lines("a\n  b\r\u{9b}c"), "a\n  b\\u{d}\\u{9b}c");
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let hostile = "\u{7f}\u{85}\u{202e}\u{2028}\u{e0041}\u{1b}\n\"\\";
        let json = serde_json::json!({ hostile: [hostile] });
        for text in [json.to_string(), format!("{json:#}")] {
            let escaped = escape_json(&text);
            assert!(!escaped.replace('\n', "").contains(is_unsafe), "{escaped:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), json);
        }
    }

    #[test]
    fn only_unsafe_characters_are_escaped() {
        for (text, expected) in [
            ("\u{1b}[2J\r\n\t", "\\u{1b}[2J\\u{d}\\u{a}\\u{9}"),
            ("\u{7f}\u{85}\u{9b}31m", "\\u{7f}\\u{85}\\u{9b}31m"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{61c}", "a\\u{202e}b\\u{2066}c\\u{200f}d\\u{61c}"),
            ("佐藤 é 👩‍🔬 `x` \\ עברית", "佐藤 é 👩‍🔬 `x` \\ עברית"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }
}
