//! `verification.requested`: a bare JSON object, or a CloudEvent around one.

use std::{fmt, time::SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    RequestId,
    body::{Body, Data, NO_WORKFLOW},
    cloud_event::REQUESTED,
    diagnosis,
    field::{self, EXTERNAL_USER_ID},
};

/// A valid request.
pub struct Request {
    /// The user to verify: 1 to 256 bytes without control characters.
    pub user_id: String,
    /// The verification workflow: 1 to 128 bytes.
    pub workflow_id: String,
    /// `key:value,` for each entry of `metadata` but `externalUserId`, byte for byte, so that no number
    /// loses a digit.
    metadata_entries: String,
    /// The language of the platform's pages, passed on unchanged.
    pub(crate) locale: Option<String>,
    /// Forbids reusing a cached link.
    pub(crate) renew: bool,
    /// The end of the request's use: the worker makes no session after it.
    pub(crate) expires_at: Option<SystemTime>,
}

/// Why a request is invalid, and the valid parts of it.
#[derive(PartialEq, Eq)]
pub struct InvalidRequest {
    /// Names fields and rules, never values: it goes into logs, events and headers.
    pub(crate) message: String,
    /// The user, if that field is valid.
    pub(crate) user_id: Option<String>,
    /// The workflow, if that field is valid.
    pub(crate) workflow_id: Option<String>,
}

impl Request {
    /// Returns `metadata` with `externalUserId` set to the user, whatever the producer set it to.
    pub(crate) fn metadata(&self) -> impl Serialize + 'static {
        let entries = &self.metadata_entries;
        let user_id = serde_json::Value::from(&*self.user_id);
        let json = format!("{{{entries}\"{EXTERNAL_USER_ID}\":{user_id}}}");
        // Cannot fail: every part is valid JSON.
        RawValue::from_string(json).unwrap_or_default()
    }
}

impl InvalidRequest {
    /// Adds what AMQP properties and headers say about a body without a valid user.
    pub(crate) fn add_hint<'a>(
        &mut self,
        content_encoding: Option<&str>,
        header_names: impl Iterator<Item = &'a str>,
    ) {
        if self.user_id.is_none()
            && let Some(hint) = diagnosis::hint(content_encoding, header_names)
        {
            self.message = format!("{}; {hint}", self.message);
        }
    }

    fn unreadable(message: String) -> Self {
        Self { message, user_id: None, workflow_id: None }
    }
}

/// Withholds the user id and the metadata.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("renew", &self.renew).finish_non_exhaustive()
    }
}

/// Withholds the user id.
impl fmt::Debug for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidRequest").field("message", &self.message).finish_non_exhaustive()
    }
}

/// The content of a message body.
#[derive(Debug)]
pub struct Decoded {
    /// The `id` of the CloudEvent, if the body is one.
    pub id: Option<RequestId>,
    /// The request, or why it is invalid.
    pub request: Result<Request, InvalidRequest>,
    /// The body is a CloudEvent about the end of a verification, and no request at all.
    pub(crate) is_ending: bool,
}

/// Decodes a body of at most `max_bytes`. `default_workflow` applies if the request names none.
pub fn decode_request(body: &[u8], max_bytes: usize, default_workflow: Option<&str>) -> Decoded {
    let Body { id, is_ending, data } = Body::read(body, max_bytes, REQUESTED);
    let request =
        data.map_err(InvalidRequest::unreadable).and_then(|data| parse(&data, default_workflow));
    Decoded { id, request, is_ending }
}

/// Parses the data object, and reports all its problems together.
fn parse(data: &Data<'_>, default_workflow: Option<&str>) -> Result<Request, InvalidRequest> {
    const KEYS: [&str; 6] = ["userId", "workflowId", "metadata", "locale", "renew", "expiresAt"];
    let (fields, mut problems) = data.fields(KEYS).map_err(InvalidRequest::unreadable)?;
    let [given_user, given_workflow, metadata, locale, renew, expires_at] = fields.values;
    // Which of several values the producer meant is unknown.
    let unless_repeated = |key, value: Option<_>| value.filter(|_| !fields.repeated.contains(&key));

    let user_id = problems.check(unless_repeated("userId", given_user), field::user);
    let workflow_id = match given_workflow {
        None => default_workflow.map(str::to_owned),
        Some(_) => problems.check(unless_repeated("workflowId", given_workflow), field::workflow),
    };
    let metadata_entries = problems.check(metadata, field::metadata);
    let locale = problems.check(locale, field::locale);
    let renew = problems.check(renew, field::renew);
    let expires_at = problems.check(expires_at, field::expires_at);
    if given_user.is_none() {
        let why = diagnosis::why_without_user(data.text).map(|why| format!(": {why}"));
        problems.add(format!("`userId` is missing{}", why.unwrap_or_default()));
    }
    if given_workflow.is_none() && workflow_id.is_none() {
        problems.add(NO_WORKFLOW);
    }

    match (user_id, workflow_id) {
        (Some(user_id), Some(workflow_id)) if problems.is_empty() => Ok(Request {
            user_id,
            workflow_id,
            metadata_entries: metadata_entries.unwrap_or_default(),
            locale,
            renew: renew.unwrap_or(false),
            expires_at,
        }),
        (user_id, workflow_id) => {
            Err(InvalidRequest { message: problems.text(), user_id, workflow_id })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str) -> Result<Request, String> {
        decode_request(body.as_bytes(), 65_536, None).request.map_err(|i| i.message)
    }

    #[test]
    fn a_bare_object_is_a_request() {
        let request = decode(
            r#"{"userId":"ann","workflowId":"w","locale":"de","renew":true,"other":[{}],
                "expiresAt":"2026-10-21T09:28:00.5+02:00","metadata":{"a":1.00000000000000000001}}"#,
        )
        .unwrap();
        assert_eq!((request.user_id.as_str(), request.workflow_id.as_str()), ("ann", "w"));
        assert_eq!(request.locale.as_deref(), Some("de"));
        assert!(request.renew);
        let expected = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        assert_eq!(request.expires_at, Some(expected + std::time::Duration::from_millis(500)));
        let metadata = serde_json::to_string(&request.metadata()).unwrap();
        assert_eq!(metadata, r#"{"a":1.00000000000000000001,"externalUserId":"ann"}"#);
    }

    #[test]
    fn null_means_absent() {
        let request = decode(
            r#"{"userId":"u","workflowId":"w","metadata":null,"locale":null,"renew":null,"expiresAt":null}"#,
        )
        .unwrap();
        assert!(!request.renew && request.locale.is_none() && request.expires_at.is_none());
        assert_eq!(
            decode(r#"{"userId":null,"workflowId":"w"}"#).unwrap_err(),
            "`userId` is missing"
        );
    }

    #[test]
    fn all_problems_are_reported_without_values() {
        let message = decode(
            r#"{"userId":"secret\u0085","userId":7,"metadata":["secret"],"locale":3,"renew":"secret","expiresAt":"secret"}"#,
        )
        .unwrap_err();
        for part in ["`userId` appears more than once", "`workflowId` is missing"] {
            assert!(message.contains(part), "{message}");
        }
        for part in ["`metadata` must", "`locale` must", "`renew` must", "`expiresAt` must"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("secret"), "{message}");
    }

    #[test]
    fn limits_are_in_bytes() {
        let body = |user: &str, workflow: &str| {
            format!(r#"{{"userId":"{user}","workflowId":"{workflow}"}}"#)
        };
        assert!(decode(&body(&"é".repeat(128), &"w".repeat(128))).is_ok());
        assert!(decode(&body(&"u".repeat(257), "w")).is_err());
        assert!(decode(&body("", "w")).is_err());
        assert!(decode(&body("u", &"w".repeat(129))).is_err());
        assert!(decode(&body("u", "")).is_err());
        let metadata = |n: usize| {
            let filler = "x".repeat(n - 8);
            decode(&format!(r#"{{"userId":"u","workflowId":"w","metadata":{{"k":"{filler}"}}}}"#))
        };
        assert!(metadata(16_384).is_ok());
        assert!(metadata(16_385).is_err());
        assert!(decode_request(&[b' '; 11], 10, None).request.is_err());
    }

    #[test]
    fn repeated_user_and_workflow_are_not_reported() {
        let two = br#"{"userId":"ann","userId":"bob","workflowId":"v","workflowId":"w"}"#;
        let invalid = decode_request(two, 100, Some("w")).request.unwrap_err();
        assert_eq!((invalid.user_id, invalid.workflow_id), (None, None));
    }

    #[test]
    fn valid_fields_of_an_invalid_request_are_kept() {
        let decoded = decode_request(br#"{"userId":"ann","renew":1}"#, 100, Some("w"));
        let invalid = decoded.request.unwrap_err();
        assert_eq!(invalid.user_id.as_deref(), Some("ann"));
        assert_eq!(invalid.workflow_id.as_deref(), Some("w"));
    }

    #[test]
    fn hostile_bodies_are_invalid() {
        let deep = "[".repeat(100_000);
        for body in ["", " ", "null", "[]", "\"x\"", "{", "{\"userId\":\"u\"", "{}x", &deep] {
            assert!(decode(body).is_err(), "{body:.20}");
        }
        let not_utf8 = decode_request(b"{\"userId\":\"\xff\"}", 100, Some("w"));
        let message = not_utf8.request.unwrap_err().message;
        assert!(message.starts_with("the body is not UTF-8 (at byte 12)"), "{message}");
        assert!(decode(r#"{"userId":"\ud800","workflowId":"w"}"#).is_err());
    }
}
