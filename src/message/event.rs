//! `handoff.ready` and `handoff.failed`: CloudEvents 1.0 in structured mode.

use std::{fmt, time::SystemTime};

use schemars::JsonSchema;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::RequestId;

/// The `type` and routing key of the event that carries a link.
pub const READY: &str = "handoff.ready";
/// The `type` and routing key of the event that says why there is no link.
pub const FAILED: &str = "handoff.failed";

/// Under which event ids are derived; fixed for ever, since consumers drop repeats by them.
const EVENT_IDS: Uuid = Uuid::from_u128(0x6b1e_2f0c_8f4d_4f0b_9c55_0d6a_7e1b_34d2);

/// Cause a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The request breaks a rule of the reference.
    InvalidRequest,
    /// Its `expiresAt` had passed.
    RequestExpired,
    /// The platform will not make this session, however often it is asked.
    PlatformRejected,
    /// Every attempt failed.
    RetriesExhausted,
}

impl ReasonCode {
    /// The code as it stands in events and on dead letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::RequestExpired => "request_expired",
            Self::PlatformRejected => "platform_rejected",
            Self::RetriesExhausted => "retries_exhausted",
        }
    }
}

/// A reason for machines and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FailedReason {
    /// For machines.
    pub code: ReasonCode,
    /// For people; holds no secret and no user id.
    pub message: String,
}

/// What an event says.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum EventBody<'a> {
    /// The link.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// The request's id.
        request_id: &'a str,
        /// Who the link is for.
        user_id: &'a str,
        /// The workflow it leads to.
        workflow_id: &'a str,
        /// The platform's session; always a string.
        session_id: &'a str,
        /// The link: a bearer secret.
        url: &'a str,
        /// When the link ends; never later than its token does.
        #[serde(serialize_with = "date_time")]
        #[schemars(with = "String", extend("format" = "date-time"))]
        expires_at: SystemTime,
        /// Whether the link was made for another request, or by an earlier try of this one.
        reused: bool,
    },
    /// The reason there is none.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// The request's id.
        request_id: &'a str,
        /// Who it was for, where that is known.
        user_id: Option<&'a str>,
        /// The workflow, where that is known.
        workflow_id: Option<&'a str>,
        /// Cause.
        reason: &'a FailedReason,
        /// Deliveries that were tried, the last included.
        #[schemars(range(min = 1))]
        attempts: u32,
    },
}

impl EventBody<'_> {
    /// The event's `type` and routing key.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ready { .. } => READY,
            Self::Failed { .. } => FAILED,
        }
    }

    fn request_and_subject(&self) -> (&str, Option<&str>) {
        match *self {
            Self::Ready { request_id, user_id, .. } => (request_id, Some(user_id)),
            Self::Failed { request_id, user_id, .. } => (request_id, user_id),
        }
    }
}

/// An event as it is published.
pub struct Event {
    /// Derived from request id and type: a repeat has the same.
    pub id: String,
    /// `type` and routing key.
    pub kind: &'static str,
    /// Now.
    pub time: SystemTime,
    /// The whole CloudEvent as JSON.
    pub body: Vec<u8>,
}

impl Event {
    /// Puts the envelope around what an event says.
    pub fn new(body: &EventBody<'_>, now: SystemTime) -> Self {
        let kind = body.kind();
        let (request_id, subject) = body.request_and_subject();
        let id = event_id(kind, &RequestId::new(request_id));
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
        // Strings, numbers and dates under fixed keys: there is nothing that could fail to serialize
        // but a date before year 0 or after 9999, and `date_time` clamps those.
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        Self { id, kind, time: now, body }
    }
}

/// Holds back the body: a link is a bearer secret.
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
    /// Made from request id and type alone: a repeat has the same.
    #[schemars(extend("format" = "uuid"))]
    id: &'a str,
    #[schemars(extend("const" = "/handoff"))]
    source: &'a str,
    /// The event's type, which is its routing key, too.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The user id, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    subject: Option<&'a str>,
    /// When the event was made.
    #[serde(serialize_with = "date_time")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    time: SystemTime,
    #[schemars(extend("const" = "application/json"))]
    datacontenttype: &'a str,
    data: &'a EventBody<'a>,
}

fn event_id(kind: &str, request: &RequestId) -> String {
    let name = [kind, "\n", request.as_str()].concat();
    Uuid::new_v5(&EVENT_IDS, name.as_bytes()).to_string()
}

/// RFC 3339 in UTC, to the millisecond, rounded down: an end is never told too late. What lies before
/// 1970 or after 9999 becomes the nearest date.
pub fn format_date_time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i128::try_from(since.as_millis()).unwrap_or(i128::MAX).saturating_mul(1_000_000);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Reads what [`format_date_time`] writes, and any other RFC 3339 date.
pub fn parse_date_time(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

fn date_time<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_date_time(*at))
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
                    "url": "https://x/capture?url=y", "expiresAt": "2027-01-15T08:00:00.999Z",
                    "reused": false,
                },
            })
        );
    }

    #[test]
    fn an_unknown_user_is_null_in_the_data_and_no_subject() {
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
    fn ids_depend_on_request_and_type_alone() {
        let (one, two) = (RequestId::new("r1"), RequestId::new("r2"));
        assert_eq!(event_id(READY, &one), event_id(READY, &one));
        assert_ne!(event_id(READY, &one), event_id(READY, &two));
        assert_ne!(event_id(READY, &one), event_id(FAILED, &one));
        // Fixed for ever: consumers remember them.
        assert_eq!(
            event_id(READY, &one),
            Uuid::new_v5(&EVENT_IDS, b"handoff.ready\nr1").to_string()
        );
    }

    #[test]
    fn fractions_are_cut_not_rounded() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_999_999);
        assert_eq!(format_date_time(at), "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn dates_out_of_range_are_told_as_the_nearest() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(format_date_time(far), "9999-12-31T23:59:59Z");
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(format_date_time(before), "1970-01-01T00:00:00Z");
    }
}
