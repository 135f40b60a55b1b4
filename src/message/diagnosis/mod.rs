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

pub(super) use self::{
    envelope::why_without_user, properties::hint, syntax::why_invalid, value::why_not_an_object,
};

/// Describes why bytes are not UTF-8 text, as what follows "the body ".
pub(super) fn why_not_utf8(body: &[u8], valid_up_to: usize) -> String {
    match binary::name(body) {
        Some(name) => format!("is {name}"),
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
        Ok(_) => format!("is JSON but not an object: it is {}", why_not_an_object(text)),
        Err(error) => {
            let why = why_invalid(text, &error).map(|why| format!(": {why}")).unwrap_or_default();
            format!("is not valid JSON (line {}, column {}){why}", error.line(), error.column())
        }
    }
}
