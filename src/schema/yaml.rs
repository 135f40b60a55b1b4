//! JSON values as YAML that reads well: blocks, with quotes only where they are needed.

use std::fmt::Write;

use serde_json::Value;

/// A whole document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text.trim_start_matches('\n').to_owned() + "\n"
}

/// What follows a key or a dash: on the same line, or on lines of its own.
fn block(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                indent(text, depth);
                text.push_str(&scalar(key));
                text.push(':');
                block(text, value, depth + 1);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for value in values {
                indent(text, depth);
                text.push('-');
                // The first entry of an object stands beside the dash.
                let mut within = String::new();
                block(&mut within, value, depth + 1);
                match within.strip_prefix('\n') {
                    Some(lines) => {
                        text.push(' ');
                        text.push_str(lines.trim_start());
                    }
                    None => text.push_str(&within),
                }
            }
        }
        Value::String(string) => {
            text.push(' ');
            text.push_str(&scalar(string));
        }
        // Numbers, truths, nothing, and what is empty are written as in JSON.
        other => {
            // Writing to a string does not fail.
            let _ = write!(text, " {other}");
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Plain where no reader of YAML could take it for anything else; else quoted as in JSON, which YAML
/// reads as well.
fn scalar(string: &str) -> String {
    let begins = string.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$' || c == '/');
    let plain = |c: char| c.is_ascii_alphanumeric() || " $/._()<>=;-".contains(c);
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_word = words.contains(&string.to_ascii_lowercase().as_str());
    match begins && string.chars().all(plain) && !string.ends_with(' ') && !is_word {
        true => string.to_owned(),
        false => Value::from(string).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_in_blocks() {
        let value = json!({
            "name": "handoff", "version": "0.1.0", "on": true, "none": null, "empty": {}, "list": [],
            "deep": { "$ref": "#/a/b", "number": 1.5 },
            "items": ["one", "no", "a: b", ["x", "z"], { "k": "v", "l": { "m": 1 } }, []],
        });
        let expected = r##"name: handoff
version: "0.1.0"
"on": true
none: null
empty: {}
list: []
deep:
  $ref: "#/a/b"
  number: 1.5
items:
  - one
  - "no"
  - "a: b"
  - - x
    - z
  - k: v
    l:
      m: 1
  - []
"##;
        assert_eq!(document(&value), expected);
    }
}
