//! The values of a request's fields: parses each, or names the rule that it breaks.

use std::time::SystemTime;

use serde_json::value::RawValue;

use super::{decode, parse_date_time};

const MAX_USER_ID: usize = 256;
const MAX_WORKFLOW_ID: usize = 128;
const MAX_SESSION_ID: usize = 1_024;
const MAX_METADATA: usize = 16 * 1024;
/// The key of `metadata` that names the user to the platform.
pub(super) const EXTERNAL_USER_ID: &str = "externalUserId";

/// Parses `userId`.
pub(super) fn user(raw: &RawValue) -> Result<String, String> {
    const RULE: &str = "`userId` must be a string of 1 to 256 bytes without control characters";
    let id = text(raw, RULE)?;
    if id.chars().any(char::is_control) {
        return Err(format!("{RULE}; it contains one"));
    }
    within(id, MAX_USER_ID, RULE)
}

/// Parses `workflowId`.
pub(super) fn workflow(raw: &RawValue) -> Result<String, String> {
    const RULE: &str = "`workflowId` must be a string of 1 to 128 bytes";
    within(text(raw, RULE)?, MAX_WORKFLOW_ID, RULE)
}

/// Parses `sessionId`, digit for digit if it is a number.
pub(super) fn session(raw: &RawValue) -> Result<String, String> {
    const RULE: &str = "`sessionId` must be a string or a number of 1 to 1,024 bytes";
    let is_number = raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let id = if is_number { raw.get().to_owned() } else { text(raw, RULE)? };
    within(id, MAX_SESSION_ID, RULE)
}

/// Parses `locale`.
pub(super) fn locale(raw: &RawValue) -> Result<String, String> {
    text(raw, "`locale` must be a string")
}

/// Parses `renew`.
pub(super) fn renew(raw: &RawValue) -> Result<bool, String> {
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong_kind("`renew` must be true or false", raw)),
    }
}

/// Parses `metadata`: returns `key:value,` for each entry but `externalUserId`, byte for byte.
pub(super) fn metadata(raw: &RawValue) -> Result<String, String> {
    let json = raw.get();
    if json.len() > MAX_METADATA {
        return Err("`metadata` must not be larger than 16 KiB".to_owned());
    }
    let mut entries = String::with_capacity(json.len());
    let is_object = decode::for_each_entry(json, |key, value| {
        if !decode::is_key(key, EXTERNAL_USER_ID) {
            entries.extend([key.get(), ":", value.get(), ","]);
        }
    });
    is_object.map(|()| entries).ok_or_else(|| wrong_kind("`metadata` must be an object", raw))
}

/// Parses `expiresAt`.
pub(super) fn expires_at(raw: &RawValue) -> Result<SystemTime, String> {
    const RULE: &str =
        "`expiresAt` must be an RFC 3339 date and time, such as 2030-01-31T12:00:00Z";
    let text = text(raw, RULE)?;
    parse_date_time(&text).ok_or_else(|| match why_no_date_time(&text) {
        Some(why) => format!("{RULE}; {why}"),
        None => RULE.to_owned(),
    })
}

/// Returns what common formats of dates lack.
fn why_no_date_time(text: &str) -> Option<&'static str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Some("it is a number of seconds or milliseconds");
    }
    let (_, time) = text.split_at_checked("2030-01-31".len())?;
    if text.starts_with("/Date(") {
        Some("it is a Microsoft JSON date")
    } else if text.ends_with(']') {
        Some("it ends with the name of a time zone: give only the offset")
    } else if time.is_empty() {
        Some("it has no time of day")
    } else if time.starts_with("T24") {
        Some("its hour is 24: write 00:00:00 of the next day")
    } else if let Some(at) = time.rfind(['+', '-']) {
        let has_colon = time[at..].contains(':');
        (!has_colon)
            .then_some("its offset must have hours and minutes with a colon, such as +02:00")
    } else {
        let is_utc = time.ends_with(['Z', 'z']);
        (!is_utc).then_some("it has no offset from UTC: end it with Z, or with one such as +02:00")
    }
}

fn text(raw: &RawValue, rule: &str) -> Result<String, String> {
    serde_json::from_str(raw.get()).map_err(|_| wrong_kind(rule, raw))
}

fn within(text: String, max_bytes: usize, rule: &str) -> Result<String, String> {
    match text.len() {
        0 => Err(format!("{rule}; it is empty")),
        n if n > max_bytes => Err(format!("{rule}; it has {n}")),
        _ => Ok(text),
    }
}

/// The rule, and of which kind the value is that breaks it.
fn wrong_kind(rule: &str, raw: &RawValue) -> String {
    let kind = match raw.get().as_bytes().first() {
        // A string that Rust cannot represent.
        Some(b'"') if rule.contains("string") => {
            "it contains half a surrogate pair, such as \\ud800"
        }
        Some(b'"') => "it is a string",
        Some(b'{') => "it is an object",
        Some(b'[') => "it is an array",
        Some(b't' | b'f') => "it is true or false",
        Some(_) | None => "it is a number",
    };
    format!("{rule}; {kind}")
}
