//! `verification.requested`: a bare JSON object, or a CloudEvent around one.

use std::{fmt, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{RequestId, cloud_event::CloudEvent, decode, parse_date_time};

const MAX_USER_ID: usize = 256;
const MAX_WORKFLOW_ID: usize = 128;
const MAX_METADATA: usize = 16 * 1024;
/// The key of `metadata` that names the user to the platform.
const EXTERNAL_USER_ID: &str = "externalUserId";

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
}

/// Decodes a body of at most `max_bytes`. `default_workflow` applies if the request names none.
pub fn decode_request(body: &[u8], max_bytes: usize, default_workflow: Option<&str>) -> Decoded {
    let text = match check_body(body, max_bytes) {
        Ok(text) => text,
        Err(message) => {
            return Decoded { id: None, request: Err(InvalidRequest::unreadable(message)) };
        }
    };
    match CloudEvent::detect(text) {
        None => Decoded { id: None, request: parse(text, "body", default_workflow) },
        Some(CloudEvent { id, data }) => {
            let data = data.map_err(InvalidRequest::unreadable);
            Decoded { id, request: data.and_then(|data| parse(data, "data", default_workflow)) }
        }
    }
}

/// Checks what a body must fulfil before it is parsed.
fn check_body(body: &[u8], max_bytes: usize) -> Result<&str, String> {
    if body.len() > max_bytes {
        return Err(format!("the body is larger than {max_bytes} bytes"));
    }
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8".to_owned())?;
    if decode::is_too_deep(text) {
        return Err("the body nests arrays and objects more than 128 levels deep".to_owned());
    }
    Ok(text)
}

/// Describes why `json` is not an object, with the place of a syntax error.
fn not_an_object(json: &str, what: &str) -> String {
    match serde_json::from_str::<serde::de::IgnoredAny>(json) {
        Err(error) => {
            format!(
                "the {what} is not valid JSON (line {}, column {})",
                error.line(),
                error.column()
            )
        }
        Ok(_) => format!("the {what} is JSON but not an object"),
    }
}

/// Parses the data object, and reports all its problems together.
fn parse(
    data: &str,
    what: &str,
    default_workflow: Option<&str>,
) -> Result<Request, InvalidRequest> {
    const KEYS: [&str; 6] = ["userId", "workflowId", "metadata", "locale", "renew", "expiresAt"];
    let Some(fields) = decode::fields(data, KEYS) else {
        return Err(InvalidRequest::unreadable(not_an_object(data, what)));
    };
    let mut problems = Problems(
        fields.repeated.iter().map(|key| format!("`{key}` appears more than once")).collect(),
    );
    let [given_user, given_workflow, metadata, locale, renew, expires_at] = fields.values;
    // Which of several values the producer meant is unknown.
    let unless_repeated = |key, value: Option<_>| value.filter(|_| !fields.repeated.contains(&key));

    let user_id = problems.check(unless_repeated("userId", given_user), user);
    let workflow_id = match given_workflow {
        None => default_workflow.map(str::to_owned),
        Some(_) => problems.check(unless_repeated("workflowId", given_workflow), workflow),
    };
    let metadata_entries = problems.check(metadata, entries);
    let locale = problems.check(locale, |raw| json(raw, "`locale` must be a string"));
    let renew = problems.check(renew, |raw| json(raw, "`renew` must be true or false"));
    let expires_at = problems.check(expires_at, date);
    if given_user.is_none() {
        problems.add("`userId` is missing");
    }
    if given_workflow.is_none() && workflow_id.is_none() {
        problems.add("`workflowId` is missing, and the worker has no default for it");
    }

    match (user_id, workflow_id) {
        (Some(user_id), Some(workflow_id)) if problems.0.is_empty() => Ok(Request {
            user_id,
            workflow_id,
            metadata_entries: metadata_entries.unwrap_or_default(),
            locale,
            renew: renew.unwrap_or(false),
            expires_at,
        }),
        (user_id, workflow_id) => {
            Err(InvalidRequest { message: problems.0.join("; "), user_id, workflow_id })
        }
    }
}

/// The rules that a request breaks.
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: &str) {
        self.0.push(problem.to_owned());
    }

    /// Parses a value if there is one, and adds the rule it breaks.
    fn check<T>(
        &mut self,
        value: Option<&RawValue>,
        parse: impl FnOnce(&RawValue) -> Result<T, &'static str>,
    ) -> Option<T> {
        parse(value?).map_err(|problem| self.add(problem)).ok()
    }
}

fn json<'a, T: Deserialize<'a>>(raw: &'a RawValue, rule: &'static str) -> Result<T, &'static str> {
    serde_json::from_str(raw.get()).map_err(|_| rule)
}

fn user(raw: &RawValue) -> Result<String, &'static str> {
    const RULE: &str = "`userId` must be a string of 1 to 256 bytes without control characters";
    let id: String = json(raw, RULE)?;
    let fits = (1..=MAX_USER_ID).contains(&id.len()) && !id.chars().any(char::is_control);
    fits.then_some(id).ok_or(RULE)
}

fn workflow(raw: &RawValue) -> Result<String, &'static str> {
    const RULE: &str = "`workflowId` must be a string of 1 to 128 bytes";
    let id: String = json(raw, RULE)?;
    (1..=MAX_WORKFLOW_ID).contains(&id.len()).then_some(id).ok_or(RULE)
}

fn entries(raw: &RawValue) -> Result<String, &'static str> {
    let json = raw.get();
    if json.len() > MAX_METADATA {
        return Err("`metadata` must not be larger than 16 KiB");
    }
    let mut entries = String::with_capacity(json.len());
    let is_object = decode::for_each_entry(json, |key, value| {
        if !decode::is_key(key, EXTERNAL_USER_ID) {
            entries.extend([key.get(), ":", value.get(), ","]);
        }
    });
    is_object.map(|()| entries).ok_or("`metadata` must be an object")
}

fn date(raw: &RawValue) -> Result<SystemTime, &'static str> {
    const RULE: &str =
        "`expiresAt` must be an RFC 3339 date and time, such as 2030-01-31T12:00:00Z";
    parse_date_time(&json::<String>(raw, RULE)?).ok_or(RULE)
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
        for body in
            ["", " ", "null", "[]", "\"x\"", "{", "{\"userId\":\"u\"", "{}x", "\u{feff}{}", &deep]
        {
            assert!(decode(body).is_err(), "{body:.20}");
        }
        let not_utf8 = decode_request(b"{\"userId\":\"\xff\"}", 100, Some("w"));
        assert_eq!(not_utf8.request.unwrap_err().message, "the body is not UTF-8");
        assert!(decode(r#"{"userId":"\ud800","workflowId":"w"}"#).is_err());
    }
}
