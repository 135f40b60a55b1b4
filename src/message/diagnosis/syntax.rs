//! Syntax errors that other languages' encoders make.

use serde::de::IgnoredAny;

/// Returns what is wrong at a syntax error, with the remedy.
pub(super) fn why_invalid(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    if error.is_eof() {
        return Some("it ends too early, as if it was cut off");
    }
    let (before, rest) = around(text, error)?;
    let starts_with = |words: &[&str]| words.iter().any(|word| rest.starts_with(word));
    let description = error.to_string();
    let is = |what: &str| description.starts_with(what);
    let begun = text.trim_start_matches([' ', '\t', '\r', '\n']);
    if !begun.starts_with(['{', '[', '"']) {
        return Some(why_no_beginning(begun));
    }
    if is("control character") {
        Some("a string contains a raw control character: escape it, such as a line break as \\n")
    } else if is("invalid escape") {
        Some("a string contains an escape that JSON does not have: escape backslashes as \\\\")
    } else if is("trailing characters") {
        Some(trailing(rest))
    } else if before.trim_end().ends_with(',') || rest.starts_with(',') {
        Some("a comma has no value before or after it")
    } else if starts_with(&["NaN", "Infinity", "inf"])
        || (before.ends_with('n') && rest.starts_with("an"))
    {
        Some("JSON has no NaN and no Infinity: use null, or leave the field out")
    } else if rest.starts_with('\'') {
        Some("strings need double quotes (Python: use json.dumps)")
    } else if starts_with(&["True", "False", "None"]) {
        Some("it is written as Python prints it: use json.dumps")
    } else if rest.starts_with("undefined") {
        Some("JSON has no undefined: use JSON.stringify")
    } else if starts_with(&["/", "#"]) {
        Some("JSON has no comments")
    } else if is("key must be a string") {
        Some("keys need double quotes")
    } else if is("expected `,`") {
        Some("a comma or a closing bracket is missing")
    } else if is("expected `:`") {
        Some("a colon is missing after a key")
    } else if is("invalid number") || starts_with(&["+", ".", "-"]) {
        Some("JSON writes numbers without a leading zero or plus, and with digits around the point")
    } else if is("expected ident") || rest.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Some("JSON has no words but true, false and null")
    } else {
        None
    }
}

fn trailing(rest: &str) -> &'static str {
    let rest = rest.trim_start();
    if rest.bytes().all(|byte| byte == 0) {
        "a NUL byte follows the object: leave out the end of the C string"
    } else if rest.chars().all(is_invisible) {
        "an invisible character follows the object"
    } else if rest.trim_start_matches(',').trim_start().starts_with('{') {
        "several objects: publish a message for each request"
    } else if rest.starts_with(['/', '#']) {
        "JSON has no comments"
    } else {
        "something follows the object"
    }
}

/// Describes text that does not begin with a JSON object.
fn why_no_beginning(text: &str) -> &'static str {
    match object_within(text.as_bytes()) {
        _ if text.starts_with(['/', '#']) => "JSON has no comments",
        true if text.starts_with(is_invisible) => {
            "an invisible character, such as a mark or a length, precedes the object"
        }
        true => "something precedes the object: publish the object alone",
        false => "it does not begin with an object",
    }
}

fn is_invisible(character: char) -> bool {
    character.is_control()
        || character.is_whitespace()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// Whether a JSON object begins after other bytes.
pub(super) fn object_within(body: &[u8]) -> bool {
    let Some(at) = body.iter().position(|byte| *byte == b'{').filter(|at| *at > 0) else {
        return false;
    };
    let mut objects = serde_json::Deserializer::from_slice(&body[at..]).into_iter::<IgnoredAny>();
    // Of the shortest objects, `{}` is in text of many kinds.
    matches!(objects.next(), Some(Ok(_))) && objects.byte_offset() > 2
}

/// The text before and from the place of an error.
fn around<'a>(text: &'a str, error: &serde_json::Error) -> Option<(&'a str, &'a str)> {
    let line = text.split('\n').nth(error.line().checked_sub(1)?)?;
    line.split_at_checked(error.column().saturating_sub(1))
}
