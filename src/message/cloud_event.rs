//! CloudEvents 1.0 in structured mode: the envelope around a request.

use serde_json::value::RawValue;

use super::{REQUESTED, RequestId, decode};

const SPECVERSION: &str = "specversion";

/// What an envelope holds.
pub(super) struct CloudEvent<'a> {
    /// The event's id, where it is one.
    pub(super) id: Option<RequestId>,
    /// The text of `data`, or why the envelope is not one of ours.
    pub(super) data: Result<&'a str, String>,
}

impl<'a> CloudEvent<'a> {
    /// Reads the envelope, if there is one: the outer `None` is no object, the inner one no envelope.
    ///
    /// A body is an envelope if it holds a `specversion`, whatever content type it was sent with.
    pub(super) fn read(json: &'a str) -> Option<Option<Self>> {
        // Where the word stands nowhere, be it with escapes, nothing has to be read to know. Whether that
        // is an object, whoever reads the request finds out.
        if !json.contains(SPECVERSION) && !json.contains('\\') {
            return Some(None);
        }
        let fields = decode::fields(json, [SPECVERSION, "id", "source", "type", "data"])?;
        let [specversion, id, source, kind, data] = fields.values;
        // Given twice, it is there, though the one that counts may be `null`.
        if specversion.is_none() && !fields.repeated.contains(&SPECVERSION) {
            return Some(None);
        }
        let id = id.and_then(text).filter(|id| !id.is_empty());
        let problem = if let Some(key) = fields.repeated.first() {
            Some(format!("the CloudEvent's `{key}` is given twice"))
        } else if specversion.and_then(text).as_deref() != Some("1.0") {
            Some("the CloudEvent's `specversion` must be \"1.0\"".to_owned())
        } else if id.is_none() {
            Some("the CloudEvent's `id` must be a string that is not empty".to_owned())
        } else if source.and_then(text).is_none_or(|source| source.is_empty()) {
            Some("the CloudEvent's `source` must be a string that is not empty".to_owned())
        } else if kind.and_then(text).as_deref() != Some(REQUESTED) {
            Some(format!("the CloudEvent's `type` must be \"{REQUESTED}\""))
        } else {
            None
        };
        let data = match (problem, data) {
            (Some(problem), _) => Err(problem),
            (None, None) => Err("the CloudEvent has no `data`".to_owned()),
            (None, Some(data)) => Ok(data.get()),
        };
        Some(Some(Self { id: id.map(RequestId::new), data }))
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
    fn an_envelope_is_opened() {
        let (id, request) = decode(&event("", ""));
        assert_eq!(id.as_deref(), Some("e1"));
        assert_eq!(request.unwrap().user_id, "ann");
    }

    #[test]
    fn an_envelope_that_is_written_with_escapes_is_one() {
        let (id, request) = decode(&event("specversion", "\\u0073pecversion"));
        assert_eq!(id.as_deref(), Some("e1"));
        assert_eq!(request.unwrap().user_id, "ann");
    }

    #[test]
    fn what_is_wrong_with_an_envelope_is_said() {
        for (change, to, word) in [
            ("1.0", "0.3", "specversion"),
            (r#""id""#, r#""specversion":null,"id""#, "given twice"),
            ("\"e1\"", "\"\"", "`id`"),
            ("\"e1\"", "7", "`id`"),
            ("\"/app\"", "null", "source"),
            ("verification.requested", "verification.done", "type"),
            ("\"data\"", "\"dada\"", "data"),
            ("{\"userId\":\"ann\"}", "[]", "data"),
            ("\"id\":\"e1\"", "\"id\":\"e1\",\"id\":\"e2\"", "twice"),
        ] {
            let (_, request) = decode(&event(change, to));
            let message = request.unwrap_err().message;
            assert!(message.contains(word), "{change} to {to}: {message}");
        }
    }
}
