//! Values that are not the object that was meant.

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

const BYTES: &str = "an array of bytes: publish the bytes themselves";

/// Returns what text is that is not JSON, and the remedy, as what follows "the body is ".
pub(super) fn name_of_text(text: &str) -> Option<&'static str> {
    let text = text.trim();
    if text.starts_with('<') {
        return Some("XML or HTML: publish JSON");
    }
    // PHP's `serialize`: an object, or an array.
    if ["O:", "a:"].iter().any(|start| {
        let count = text
            .strip_prefix(start)
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        // Symfony Messenger escapes the quotes.
        count.is_some_and(|rest| [":\"", ":{", ":\\\""].iter().any(|start| rest.starts_with(start)))
    }) {
        return Some("a serialized PHP value: publish JSON (json_encode)");
    }
    if is_base64_of_json(text) {
        return Some("JSON in base64: publish the JSON itself");
    }
    if text.split_once('.').is_some_and(|(header, _)| is_base64_of_json(header)) {
        return Some("a JSON Web Token: publish the request itself");
    }
    let is_form =
        text.split('&').all(|pair| pair.split_once('=').is_some_and(|(key, _)| is_word(key)));
    is_form.then_some("form data: publish JSON")
}

/// Returns what a JSON value is instead of an object, and the remedy.
pub(super) fn name(json: &str) -> &'static str {
    match json.trim_start().as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(json) {
            Ok(text) if is_json_object(&text) => {
                "a string that contains JSON (encoded twice): encode it once"
            }
            Ok(text) if is_base64_of_json(&text) => {
                "a string that contains JSON in base64 (encoded twice): publish the JSON itself"
            }
            _ => "a string",
        },
        Some(b'[') => why_array(json),
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn why_array(json: &str) -> &'static str {
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json) else { return "an array" };
    let begin = |item: &RawValue| item.get().as_bytes().first().copied();
    match &items[..] {
        [arguments, keywords, options]
            if begin(arguments) == Some(b'[')
                && begin(keywords) == Some(b'{')
                && begin(options) == Some(b'{') =>
        {
            "a Celery task: publish the request itself, with kombu or pika"
        }
        [name, object] if begin(name) == Some(b'"') && begin(object) == Some(b'{') => {
            "a type name and an object, as Jackson's default typing writes it: publish the object alone"
        }
        [] => "an empty array",
        _ if serde_json::from_str::<Vec<u8>>(json).is_ok() => BYTES,
        _ if items.iter().all(|item| begin(item) == Some(b'{')) => {
            "an array: publish a message for each request"
        }
        _ => "an array",
    }
}

fn is_json_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// In either alphabet, with or without padding and line breaks.
fn is_base64_of_json(text: &str) -> bool {
    let digits = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=');
    let standard = digits.map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        byte => byte,
    });
    let bytes = BASE64_STANDARD_NO_PAD.decode(standard.collect::<Vec<_>>()).unwrap_or_default();
    std::str::from_utf8(&bytes).is_ok_and(is_json_object)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
