//! `verification.requested`: a bare object or a CloudEvent around one.

use std::{fmt, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{cloud_event::CloudEvent, decode};

/// The routing key of requests, and the `type` of the CloudEvent around one.
pub const REQUESTED: &str = "verification.requested";

const MAX_USER_ID: usize = 256;
const MAX_WORKFLOW_ID: usize = 128;
const MAX_METADATA: usize = 16 * 1024;

/// The name a request goes by: in its events, on its copies, in the logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// An id as its producer gave it.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of the id as fits where AMQP and logs set a limit: its first 255 bytes or a few less.
    pub fn short(&self) -> &str {
        &self.0[..self.0.floor_char_boundary(255)]
    }
}

/// A valid request.
pub struct Request {
    /// Who is to be verified: 1 to 256 bytes without control characters.
    pub user_id: String,
    /// By which workflow: 1 to 128 bytes.
    pub workflow_id: String,
    /// What the producer wants passed on.
    pub metadata: Metadata,
    /// The language of the pages, passed on as it is.
    pub locale: Option<String>,
    /// Do not reuse a cached link.
    pub renew: bool,
    /// After this, nobody waits.
    pub expires_at: Option<SystemTime>,
}

/// Cause a request is invalid, and what could be read of it nevertheless.
#[derive(PartialEq, Eq)]
pub struct InvalidRequest {
    /// For people: names fields and rules, holds no values.
    pub message: String,
    /// The user, where that much was valid.
    pub user_id: Option<String>,
    /// The workflow, where that much was valid.
    pub workflow_id: Option<String>,
}

/// A JSON object, passed on as it came, key by key: no number loses a digit on the way.
#[derive(Clone, Default)]
pub struct Metadata {
    /// The entries as JSON, with commas between, and without the one that is ours.
    entries: String,
}

impl Metadata {
    /// The entry that says who the session is for.
    const OURS: &'static str = "externalUserId";

    fn read(json: &str) -> Option<Self> {
        let mut entries = String::with_capacity(json.len());
        for (key, value) in decode::entries(json)? {
            if !decode::is_key(key, Self::OURS) {
                entries.extend([key.get(), ":", value.get(), ","]);
            }
        }
        Some(Self { entries })
    }

    /// The object with `externalUserId` set to the user, whatever it was before.
    pub fn for_user(&self, user_id: &str) -> impl Serialize + 'static {
        let (entries, ours) = (&self.entries, Self::OURS);
        let user_id = serde_json::Value::from(user_id);
        // Made of JSON that was read as such, it can only be JSON.
        RawValue::from_string(format!("{{{entries}\"{ours}\":{user_id}}}")).unwrap_or_default()
    }
}

/// Tells nobody who it is for.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("renew", &self.renew).finish_non_exhaustive()
    }
}

/// Tells nobody who it is for.
impl fmt::Debug for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidRequest").field("message", &self.message).finish_non_exhaustive()
    }
}

/// What the body says the request is called, and what it asks for.
#[derive(Debug)]
pub struct Decoded {
    /// The CloudEvent's `id`, where there is one.
    pub id: Option<RequestId>,
    /// The request, or why it is none.
    pub request: Result<Request, InvalidRequest>,
}

/// Reads a body of at most `max_bytes`. `default_workflow` serves requests that name none.
pub fn decode_request(body: &[u8], max_bytes: usize, default_workflow: Option<&str>) -> Decoded {
    match unwrap(body, max_bytes) {
        Ok((id, data)) => {
            let what = if id.is_some() { "data" } else { "body" };
            Decoded { id, request: read(data, what, default_workflow) }
        }
        Err((id, message)) => {
            let request = Err(InvalidRequest { message, user_id: None, workflow_id: None });
            Decoded { id, request }
        }
    }
}

type Unwrapped<'a> = Result<(Option<RequestId>, &'a str), (Option<RequestId>, String)>;

/// From the body to the text of the data object.
fn unwrap<'a>(body: &'a [u8], max_bytes: usize) -> Unwrapped<'a> {
    let wrong = |message: &str| (None, message.to_owned());
    if body.len() > max_bytes {
        return Err((None, format!("the body is larger than {max_bytes} bytes")));
    }
    let text = std::str::from_utf8(body).map_err(|_| wrong("the body is not UTF-8"))?;
    if decode::too_deep(text) {
        return Err(wrong("the body nests arrays and objects more than 128 deep"));
    }
    match CloudEvent::read(text).ok_or_else(|| (None, no_object(text, "body")))? {
        None => Ok((None, text)),
        Some(event) => match event.data {
            Ok(data) => Ok((event.id, data)),
            Err(message) => Err((event.id, message)),
        },
    }
}

/// Cause something is no JSON object. That a slip in the syntax is one is said, with its place.
fn no_object(json: &str, what: &str) -> String {
    match serde_json::from_str::<serde::de::IgnoredAny>(json) {
        Err(slip) => {
            format!("the {what} is not JSON (line {}, column {})", slip.line(), slip.column())
        }
        Ok(_) => format!("the {what} is JSON, but not an object"),
    }
}

/// From the text of the data object to the request.
fn read(data: &str, what: &str, default_workflow: Option<&str>) -> Result<Request, InvalidRequest> {
    const KEYS: [&str; 6] = ["userId", "workflowId", "metadata", "locale", "renew", "expiresAt"];
    let Some(fields) = decode::fields(data, KEYS) else {
        return Err(InvalidRequest {
            message: no_object(data, what),
            user_id: None,
            workflow_id: None,
        });
    };
    let mut problems: Vec<String> =
        fields.repeated.iter().map(|key| format!("`{key}` is given twice")).collect();
    let mut check = |value: Result<(), &str>| {
        if let Err(problem) = value {
            problems.push(problem.to_owned());
        }
    };

    let [mut user_id, mut workflow_id, metadata, locale, renew, expires_at] = fields.values;
    // Of two, nobody knows which is meant.
    for (value, key) in [(&mut user_id, "userId"), (&mut workflow_id, "workflowId")] {
        if fields.repeated.contains(&key) {
            *value = None;
        }
    }
    let user_id = keep(user_id.map(user), &mut check);
    let workflow_id = match workflow_id {
        None if fields.values[1].is_none() => default_workflow.map(str::to_owned),
        None => None,
        Some(given) => keep(Some(workflow(given)), &mut check),
    };
    let metadata_ok = keep(metadata.map(object), &mut check);
    let locale = keep(locale.map(|raw| text(raw, "`locale` must be a string")), &mut check);
    let renew = keep(renew.map(|raw| json(raw, "`renew` must be true or false")), &mut check);
    let expires_at = keep(expires_at.map(date), &mut check);
    if fields.values[0].is_none() {
        check(Err("`userId` is missing"));
    }
    if fields.values[1].is_none() && workflow_id.is_none() {
        check(Err("`workflowId` is missing, and this worker has no default for it"));
    }

    match (user_id, workflow_id, problems.is_empty()) {
        (Some(user_id), Some(workflow_id), true) => Ok(Request {
            user_id,
            workflow_id,
            metadata: metadata_ok.unwrap_or_default(),
            locale,
            renew: renew.unwrap_or(false),
            expires_at,
        }),
        (user_id, workflow_id, _) => {
            Err(InvalidRequest { message: problems.join("; "), user_id, workflow_id })
        }
    }
}

/// The value if it was given and right; its problem goes to `check`.
fn keep<T>(
    value: Option<Result<T, &'static str>>,
    check: &mut impl FnMut(Result<(), &'static str>),
) -> Option<T> {
    value?.map_err(|problem| check(Err(problem))).ok()
}

fn json<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    problem: &'static str,
) -> Result<T, &'static str> {
    serde_json::from_str(raw.get()).map_err(|_| problem)
}

fn text(raw: &RawValue, problem: &'static str) -> Result<String, &'static str> {
    json(raw, problem)
}

fn user(raw: &RawValue) -> Result<String, &'static str> {
    const RULE: &str = "`userId` must be a string of 1 to 256 bytes without control characters";
    let id = text(raw, RULE)?;
    let fits = (1..=MAX_USER_ID).contains(&id.len()) && !id.chars().any(char::is_control);
    fits.then_some(id).ok_or(RULE)
}

fn workflow(raw: &RawValue) -> Result<String, &'static str> {
    const RULE: &str = "`workflowId` must be a string of 1 to 128 bytes";
    let id = text(raw, RULE)?;
    (1..=MAX_WORKFLOW_ID).contains(&id.len()).then_some(id).ok_or(RULE)
}

fn object(raw: &RawValue) -> Result<Metadata, &'static str> {
    if raw.get().len() > MAX_METADATA {
        return Err("`metadata` is larger than 16 KiB");
    }
    Metadata::read(raw.get()).ok_or("`metadata` must be an object")
}

fn date(raw: &RawValue) -> Result<SystemTime, &'static str> {
    const RULE: &str =
        "`expiresAt` must be an RFC 3339 date and time, such as 2030-01-31T12:00:00Z";
    let date = OffsetDateTime::parse(&text(raw, RULE)?, &Rfc3339).map_err(|_| RULE)?;
    Ok(date.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str) -> Result<Request, String> {
        decode_request(body.as_bytes(), 65_536, None).request.map_err(|i| i.message)
    }

    fn sent(metadata: &Metadata) -> String {
        serde_json::to_string(&metadata.for_user("u")).unwrap()
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
        assert_eq!(sent(&request.metadata), r#"{"a":1.00000000000000000001,"externalUserId":"u"}"#);
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
    fn the_users_own_external_id_never_wins() {
        let metadata =
            Metadata::read(r#"{"externalUserId":1,"x":2,"\u0065xternalUserId":3}"#).unwrap();
        assert_eq!(sent(&metadata), r#"{"x":2,"externalUserId":"u"}"#);
    }

    #[test]
    fn every_problem_is_named_and_no_value_shown() {
        let message = decode(
            r#"{"userId":"secret\u0085","userId":7,"metadata":["secret"],"locale":3,"renew":"secret","expiresAt":"secret"}"#,
        )
        .unwrap_err();
        for part in ["`userId` is given twice", "`workflowId` is missing"] {
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
    fn of_two_users_neither_is_told() {
        let two = br#"{"userId":"ann","userId":"bob","workflowId":"v","workflowId":"w"}"#;
        let invalid = decode_request(two, 100, Some("w")).request.unwrap_err();
        assert_eq!((invalid.user_id, invalid.workflow_id), (None, None));
    }

    #[test]
    fn a_partly_valid_request_tells_who_it_was_for() {
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

    #[test]
    fn long_request_ids_are_cut_between_characters() {
        let id = RequestId::new("é".repeat(200));
        assert_eq!(id.short().len(), 254);
        assert_eq!(id.as_str().len(), 400);
    }
}
