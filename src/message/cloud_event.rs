//! CloudEvents 1.0 in structured mode, as producers may wrap a request.

use serde_json::value::RawValue;

use super::{RequestId, decode};

/// The routing key of requests, and the `type` of a CloudEvent around one.
pub(crate) const REQUESTED: &str = "verification.requested";
/// The routing key of endings, and the `type` of a CloudEvent around one.
pub(crate) const ENDED: &str = "verification.ended";

const SPECVERSION: &str = "specversion";

/// A CloudEvent around a request or an ending.
pub(super) struct CloudEvent<'a> {
    /// The event's `id`, if it is valid.
    pub(super) id: Option<RequestId>,
    /// Its `type` is that of an ending.
    pub(super) is_ending: bool,
    /// The text of `data`, or the rule that the CloudEvent breaks.
    pub(super) data: Result<&'a str, String>,
}

impl<'a> CloudEvent<'a> {
    /// Detects a CloudEvent by its `specversion`, whatever content type it was sent with. `expected`: the `type`
    /// that its data may have.
    pub(super) fn detect(json: &'a str, expected: &str) -> Option<Self> {
        // Saves a bare request one pass over its keys. A backslash could escape `specversion`.
        if !json.contains(SPECVERSION) && !json.contains('\\') {
            return None;
        }
        let fields = decode::fields(json, [SPECVERSION, "id", "source", "type", "data"])?;
        let [specversion, id, source, kind, data] = fields.values;
        // A repeated `specversion` is present even if its last value is `null`.
        if specversion.is_none() && !fields.repeated.contains(&SPECVERSION) {
            return None;
        }
        let id = id.and_then(text).filter(|id| !id.is_empty());
        let kind = kind.and_then(text);
        let data = if let Some(key) = fields.repeated.first() {
            Err(format!("CloudEvent: `{key}` appears more than once"))
        } else if specversion.and_then(text).as_deref() != Some("1.0") {
            let version = specversion.map_or("null", RawValue::get);
            Err(format!("CloudEvent: `specversion` must be \"1.0\"{}", why_version(version)))
        } else if id.is_none() {
            Err("CloudEvent: `id` must be a non-empty string".to_owned())
        } else if source.and_then(text).is_none_or(|source| source.is_empty()) {
            Err("CloudEvent: `source` must be a non-empty string".to_owned())
        } else if kind.as_deref() != Some(expected) {
            Err(format!("CloudEvent: `type` must be \"{expected}\""))
        } else {
            data.map(RawValue::get).ok_or_else(|| {
                let is_base64 = decode::fields(json, ["data_base64"])
                    .is_some_and(|fields| fields.values[0].is_some());
                let remedy = if is_base64 {
                    "; `data_base64` is not read: send `data` as an object, with `datacontenttype` \
                     application/json"
                } else {
                    ""
                };
                format!("CloudEvent: `data` is missing{remedy}")
            })
        };
        let is_ending = kind.as_deref() == Some(ENDED);
        Some(Self { id: id.map(RequestId::new), is_ending, data })
    }
}

fn why_version(json: &str) -> &'static str {
    match json {
        "1.0" | "1" => "; it is a number: put it in quotes",
        "\"0.1\"" | "\"0.2\"" | "\"0.3\"" => "; it is an older one: have the SDK write version 1.0",
        _ => "",
    }
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests {
    use crate::message::{InvalidRequest, Request, decode_request};

    fn decode(body: &str) -> (Option<String>, Result<Request, InvalidRequest>) {
        let decoded = decode_request(body.as_bytes(), 65_536, Some("w"));
        (decoded.id.map(|id| id.as_str().to_owned()), decoded.request)
    }

    fn event(change: &str, to: &str) -> String {
        r#"{"specversion":"1.0","id":"e1","source":"/app","type":"verification.requested","data":{"userId":"ann"}}"#
            .replace(change, to)
    }

    #[test]
    fn request_in_a_cloud_event_is_decoded() {
        let (id, request) = decode(&event("", ""));
        assert_eq!(id.as_deref(), Some("e1"));
        assert_eq!(request.unwrap().user_id, "ann");
    }

    #[test]
    fn escaped_specversion_makes_a_cloud_event() {
        let (id, request) = decode(&event("specversion", "\\u0073pecversion"));
        assert_eq!(id.as_deref(), Some("e1"));
        assert_eq!(request.unwrap().user_id, "ann");
    }

    #[test]
    fn invalid_cloud_event_names_the_broken_rule() {
        for (change, to, part) in [
            ("1.0", "0.3", "`specversion` must"),
            (r#""id""#, r#""specversion":null,"id""#, "`specversion` appears more than once"),
            ("\"e1\"", "\"\"", "`id` must"),
            ("\"e1\"", "7", "`id` must"),
            ("\"/app\"", "null", "`source` must"),
            ("verification.requested", "verification.done", "`type` must"),
            ("\"data\"", "\"dada\"", "`data` is missing"),
            ("{\"userId\":\"ann\"}", "[]", "the data is JSON but not an object"),
            ("\"id\":\"e1\"", "\"id\":\"e1\",\"id\":\"e2\"", "`id` appears more than once"),
        ] {
            let (_, request) = decode(&event(change, to));
            let message = request.unwrap_err().message;
            assert!(message.contains(part), "{change} to {to}: {message}");
        }
    }
}
