//! Syntax errors that other languages' encoders make.

/// Returns what is wrong at a syntax error, with the remedy.
pub(super) fn why_invalid(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    if error.is_eof() {
        return Some("it ends too early, as if it was cut off");
    }
    let (before, rest) = around(text, error)?;
    let starts_with = |words: &[&str]| words.iter().any(|word| rest.starts_with(word));
    let description = error.to_string();
    let is = |what: &str| description.starts_with(what);
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
    } else if starts_with(&["True", "False", "None", "'"]) {
        Some("it is written as Python prints it: use json.dumps")
    } else if rest.starts_with("undefined") {
        Some("JSON has no undefined: use JSON.stringify")
    } else if starts_with(&["/", "#"]) {
        Some("JSON has no comments")
    } else if is("key must be a string") {
        Some("keys need double quotes")
    } else {
        None
    }
}

fn trailing(rest: &str) -> &'static str {
    if rest.trim_start().bytes().all(|byte| byte == 0) {
        "a NUL byte follows the object: leave out the end of the C string"
    } else if rest.starts_with('{') {
        "several objects: publish a message for each request"
    } else {
        "something follows the object"
    }
}

/// The text before and from the place of an error.
fn around<'a>(text: &'a str, error: &serde_json::Error) -> Option<(&'a str, &'a str)> {
    let line = text.split('\n').nth(error.line().checked_sub(1)?)?;
    line.split_at_checked(error.column().saturating_sub(1))
}
