//! `handoff.ready` and `handoff.failed`: CloudEvents 1.0 in structured mode.

use std::{fmt, time::SystemTime};

use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::time::serialize_date_time;

/// The `type` and routing key of the event that carries a link.
pub(crate) const READY: &str = "handoff.ready";
/// The `type` and routing key of the event that reports a failed request.
pub(crate) const FAILED: &str = "handoff.failed";

/// The namespace of event ids. It must never change: consumers drop repeated events by id.
const EVENT_IDS: Uuid = Uuid::from_u128(0x6b1e_2f0c_8f4d_4f0b_9c55_0d6a_7e1b_34d2);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The request breaks a rule of its format.
    InvalidRequest,
    /// `expiresAt` passed before a link was made.
    RequestExpired,
    /// The platform rejects this session, and would reject it again.
    PlatformRejected,
    /// All attempts failed.
    RetriesExhausted,
}

impl ReasonCode {
    /// Returns the code as events and dead letters have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::RequestExpired => "request_expired",
            Self::PlatformRejected => "platform_rejected",
            Self::RetriesExhausted => "retries_exhausted",
        }
    }
}

/// Why a request failed, for programs and for persons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailedReason {
    /// For programs.
    pub code: ReasonCode,
    /// For persons; contains no secret and no user id.
    pub message: String,
}

/// The `data` of an event.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum EventBody<'a> {
    /// A link for the user.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// The request's id.
        request_id: &'a str,
        /// The user to verify.
        user_id: &'a str,
        /// The verification workflow.
        workflow_id: &'a str,
        /// The id of the platform's session; always a string.
        session_id: &'a str,
        /// The link that a person opens. It grants access to the session: treat it as a secret.
        url: &'a str,
        /// The link that the platform's SDKs take, a secret as well. Links of the one-call flow are the same.
        mobile_url: &'a str,
        /// When the links expire; never later than the token or the session.
        #[serde(serialize_with = "serialize_date_time")]
        #[schemars(with = "String", extend("format" = "date-time"))]
        expires_at: SystemTime,
        /// Whether the link was made for an earlier request, or by an earlier attempt of this one.
        reused: bool,
    },
    /// Why there is no link.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// The request's id.
        request_id: &'a str,
        /// The user to verify, or null if the request has no valid one.
        user_id: Option<&'a str>,
        /// The verification workflow, or null if it is unknown.
        workflow_id: Option<&'a str>,
        /// Why the request failed.
        reason: &'a FailedReason,
        /// The number of attempts, the last included.
        #[schemars(range(min = 1))]
        attempts: u32,
    },
}

/// An event, ready to be published.
pub struct Event {
    /// Derived from the request id and the type, so that a repeated event has the same id.
    pub(crate) id: String,
    /// The `type`, which is also the routing key.
    pub(crate) kind: &'static str,
    pub(crate) time: SystemTime,
    /// The CloudEvent as JSON.
    pub(crate) body: Vec<u8>,
}

impl Event {
    /// Encodes an event that is made `now`.
    pub fn new(body: &EventBody<'_>, now: SystemTime) -> Self {
        let (kind, request_id, subject, links) = match *body {
            EventBody::Ready { request_id, user_id, url, mobile_url, .. } => {
                (READY, request_id, Some(user_id), url.len() + mobile_url.len())
            }
            EventBody::Failed { request_id, user_id, .. } => (FAILED, request_id, user_id, 0),
        };
        let id = event_id(kind, request_id);
        let envelope = EventEnvelope {
            specversion: "1.0",
            id: &id,
            source: "/handoff",
            kind,
            subject,
            time: now,
            datacontenttype: "application/json",
            data: body,
        };
        // Most events fit, so that the buffer need not grow.
        let mut json = Vec::with_capacity(links + 768);
        // Cannot fail: the keys are fixed, and `serialize_date_time` clamps dates to valid years.
        let _ = serde_json::to_writer(&mut json, &envelope);
        Self { id, kind, time: now, body: json }
    }
}

/// Withholds the body, which contains the link.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A CloudEvent 1.0 in structured mode.
#[derive(Serialize, JsonSchema)]
pub(super) struct EventEnvelope<'a> {
    #[schemars(extend("const" = "1.0"))]
    specversion: &'a str,
    /// Derived from the request id and the type: a repeated event has the same id.
    #[schemars(extend("format" = "uuid"))]
    id: &'a str,
    #[schemars(extend("const" = "/handoff"))]
    source: &'a str,
    /// The type of the event, which is also its routing key.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The user id; absent if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    subject: Option<&'a str>,
    /// When the event was made.
    #[serde(serialize_with = "serialize_date_time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    time: SystemTime,
    #[schemars(extend("const" = "application/json"))]
    datacontenttype: &'a str,
    data: &'a EventBody<'a>,
}

fn event_id(kind: &str, request_id: &str) -> String {
    let name = [kind, "\n", request_id].concat();
    Uuid::new_v5(&EVENT_IDS, name.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn a_ready_event_is_a_cloud_event() {
        let body = EventBody::Ready {
            request_id: "r1",
            user_id: "ann",
            workflow_id: "w",
            session_id: "42",
            url: "https://x/capture?url=y",
            mobile_url: "https://x/mobile?z",
            expires_at: at(1_800_000_000_999),
            reused: false,
        };
        let event = Event::new(&body, at(1_700_000_000_000));
        let json: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "specversion": "1.0", "id": event.id, "source": "/handoff", "type": "handoff.ready",
                "subject": "ann", "time": "2023-11-14T22:13:20Z", "datacontenttype": "application/json",
                "data": {
                    "requestId": "r1", "userId": "ann", "workflowId": "w", "sessionId": "42",
                    "url": "https://x/capture?url=y", "mobileUrl": "https://x/mobile?z",
                    "expiresAt": "2027-01-15T08:00:00.999Z", "reused": false,
                },
            })
        );
    }

    #[test]
    fn unknown_user_is_null_in_the_data_and_absent_as_subject() {
        let reason = FailedReason { code: ReasonCode::InvalidRequest, message: "m".into() };
        let body = EventBody::Failed {
            request_id: "r1",
            user_id: None,
            workflow_id: None,
            reason: &reason,
            attempts: 1,
        };
        let event = Event::new(&body, at(0));
        let json: serde_json::Value = serde_json::from_slice(&event.body).unwrap();
        assert!(json.get("subject").is_none());
        assert_eq!(json["data"]["userId"], serde_json::Value::Null);
        assert_eq!(json["data"]["reason"]["code"], "invalid_request");
        assert_eq!(ReasonCode::InvalidRequest.as_str(), "invalid_request");
    }

    #[test]
    fn event_ids_depend_on_request_id_and_type_alone() {
        assert_eq!(event_id(READY, "r1"), event_id(READY, "r1"));
        assert_ne!(event_id(READY, "r1"), event_id(READY, "r2"));
        assert_ne!(event_id(READY, "r1"), event_id(FAILED, "r1"));
        // Consumers remember ids: they must never change.
        let expected = Uuid::new_v5(&EVENT_IDS, b"handoff.ready\nr1").to_string();
        assert_eq!(event_id(READY, "r1"), expected);
    }
}
