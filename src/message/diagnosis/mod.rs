//! Names what a message is that is not a request, and the remedy.
//!
//! Runs only for invalid requests. All texts are constants: none can contain a part of the message.

mod binary;
mod envelope;
mod properties;
mod syntax;
#[cfg(test)]
mod tests;
mod value;

pub(super) use self::properties::hint;

/// The largest text whose items are looked at: a list of them can take more memory than the text.
const MAX_EXAMINED: usize = 256 * 1024;

/// Returns what an object without `userId` is, with the remedy.
pub(super) fn why_without_user(json: &str) -> Option<String> {
    if json.len() <= MAX_EXAMINED { envelope::name(json) } else { None }
}

/// Describes why bytes are not UTF-8 text, as what follows "the body ".
pub(super) fn why_not_utf8(body: &[u8], valid_up_to: usize) -> String {
    match binary::name(body) {
        Some(name) => format!("is {name}"),
        None if syntax::object_within(body) => {
            "is not UTF-8: something precedes the JSON object: publish the object alone".to_owned()
        }
        None => format!(
            "is not UTF-8 (at byte {}): encode it as UTF-8, not as ISO 8859-1 or Windows-1252",
            valid_up_to + 1
        ),
    }
}

/// Describes why text is not a JSON object, as what follows "the body " or "the data ".
pub(super) fn why_not_json_object(text: &str) -> String {
    if text.trim().is_empty() {
        return "is empty".to_owned();
    }
    if let Some(name) = binary::name(text.as_bytes()).or_else(|| value::name_of_text(text)) {
        return format!("is {name}");
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) if text.len() > MAX_EXAMINED => "is JSON but not an object".to_owned(),
        Ok(_) => format!("is JSON but not an object: it is {}", value::name(text)),
        Err(error) => {
            let why =
                syntax::why_invalid(text, &error).map(|why| format!(": {why}")).unwrap_or_default();
            format!("is not valid JSON (line {}, column {}){why}", error.line(), error.column())
        }
    }
}
