//! Example messages. The code that makes events makes the example events.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use url::Url;

use crate::{
    message::{
        ENDED, Event, EventBody, FailedReason, REQUESTED, ReasonCode, format_date_time,
        parse_date_time,
    },
    platform::Links,
};

const REQUEST_ID: &str = "order-7781-verify";
const ENDING_ID: &str = "0c5f4a6e-1f0b-4a53-9f43-6d0f3d3c2a17";
const SESSION: &str = "65f1c0ffee0ddba11ca7beef";
const USER: &str = "u-20418";
const WORKFLOW: &str = "0b7c2f3e-5a41-4a0e-9a55-3d1f6c2b8e90";
const TRACE_PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The time of all examples.
fn now() -> SystemTime {
    parse_date_time("2026-03-02T09:15:04.611Z").unwrap_or(SystemTime::UNIX_EPOCH)
}

fn later(minutes: u64) -> SystemTime {
    now() + Duration::from_secs(60 * minutes)
}

fn data() -> Value {
    json!({
        "userId": USER,
        "workflowId": WORKFLOW,
        "metadata": { "plan": "gold" },
        "locale": "de-AT",
        "renew": false,
        "expiresAt": format_date_time(later(15)),
    })
}

/// Bare requests.
pub(super) fn request() -> Value {
    let headers = json!({ "message_id": REQUEST_ID, "traceparent": TRACE_PARENT });
    json!([
        { "name": "least", "summary": "Only the required field.", "headers": headers, "payload": { "userId": USER } },
        { "name": "most", "summary": "Every field.", "headers": headers, "payload": data() },
    ])
}

/// A request as a CloudEvent.
pub(super) fn request_in_cloud_event() -> Value {
    json!([{
        "name": "cloudEvent",
        "summary": "A CloudEvent in structured mode.",
        "payload": {
            "specversion": "1.0",
            "type": REQUESTED,
            "source": "/shop/checkout",
            "id": REQUEST_ID,
            "time": format_date_time(now()),
            "data": data(),
        },
    }])
}

/// Bare endings.
pub(super) fn ending() -> Value {
    let headers = || json!({ "message_id": ENDING_ID, "timestamp": seconds(now()) });
    json!([
        { "name": "session", "summary": "A session is over.", "headers": headers(), "payload": { "sessionId": SESSION } },
        { "name": "user", "summary": "A user's verification in one workflow is over.", "headers": headers(),
            "payload": { "userId": USER, "workflowId": WORKFLOW } },
    ])
}

/// An ending as a CloudEvent.
pub(super) fn ending_in_cloud_event() -> Value {
    json!([{
        "name": "cloudEvent",
        "summary": "A CloudEvent in structured mode.",
        "headers": { "timestamp": seconds(now()) },
        "payload": {
            "specversion": "1.0",
            "type": ENDED,
            "source": "/idv/webhook",
            "id": ENDING_ID,
            "data": { "userId": USER, "workflowId": WORKFLOW, "sessionId": SESSION },
        },
    }])
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An event with a link.
pub(super) fn ready() -> Value {
    let Ok(public) = Url::parse("https://idv.example.com") else { return Value::Null };
    let links = Links::of_token(&public, "Token tr-1+2/é", SESSION);
    let body = EventBody::Ready {
        request_id: REQUEST_ID,
        user_id: USER,
        workflow_id: WORKFLOW,
        session_id: SESSION,
        url: &links.url,
        mobile_url: &links.mobile_url,
        expires_at: later(60),
        reused: false,
    };
    json!([example("ready", "A new link.", &body, now())])
}

/// Events of failed requests.
pub(super) fn failed() -> Value {
    let exhausted = FailedReason {
        code: ReasonCode::RetriesExhausted,
        message:
            "the last of 5 attempts failed: the platform answered the session call with status 503"
                .to_owned(),
    };
    let invalid = FailedReason {
        code: ReasonCode::InvalidRequest,
        message: "`userId` is missing".to_owned(),
    };
    let failed = |user_id, workflow_id, reason, attempts| EventBody::Failed {
        request_id: REQUEST_ID,
        user_id,
        workflow_id,
        reason,
        attempts,
    };
    let exhausted = failed(Some(USER), Some(WORKFLOW), &exhausted, 5);
    let invalid = failed(None, None, &invalid, 1);
    json!([
        example("retriesExhausted", "The platform was down for too long.", &exhausted, later(22)),
        example("invalidRequest", "The request has no user id.", &invalid, now()),
    ])
}

fn example(name: &str, summary: &str, body: &EventBody<'_>, at: SystemTime) -> Value {
    let event = Event::new(body, at);
    json!({
        "name": name,
        "summary": summary,
        "headers": {
            "message_id": event.id,
            "correlation_id": REQUEST_ID,
            "type": event.kind,
            "timestamp": seconds(at),
            "app_id": "handoff",
            "traceparent": TRACE_PARENT,
        },
        "payload": serde_json::from_slice::<Value>(&event.body).unwrap_or_default(),
    })
}
