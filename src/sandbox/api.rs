//! The platform's two calls over HTTP.

use std::time::{Duration, Instant};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    ask::{self, MAX_BODY, Refusal, SessionAsk},
    connection::Cut,
    faults::Answer,
    gate::Course,
    platform::Platform,
    record::{Call, CallRecord},
    server::Shared,
};

/// What a call asks for.
enum Ask {
    Token(Result<Duration, Refusal>),
    Session(Result<SessionAsk, Refusal>),
}

/// Serves a call: work first, simulated latency after, so that a caller who gives up waiting leaves
/// a token or a session behind, as it may with the real platform.
pub(super) async fn serve(shared: &Shared, cut: &Cut, call: Call, request: Request) -> Response {
    let _serving = shared.serving();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.ok();
    let (answer, latency) = answer(shared, call, &parts, body.as_deref());
    if !latency.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(latency) => {}
            () = shared.stopping.cancelled() => {}
        }
    }
    respond(answer, cut)
}

fn answer(shared: &Shared, call: Call, parts: &Parts, body: Option<&[u8]>) -> (Answer, Duration) {
    let now = Instant::now();
    let authorization = parts.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let mut record = CallRecord::new(call, shared.millis(now));
    record.authorization = authorization.map(|secret| fingerprint(shared, secret));
    record.idempotency_key = text(&parts.headers, "idempotency-key");
    record.traceparent = text(&parts.headers, "traceparent");
    record.tracestate = text(&parts.headers, "tracestate");
    let ask = match call {
        Call::Token => Ask::Token(ask::token(parts, body, &mut record)),
        Call::Session => Ask::Session(ask::session(parts, body, &mut record)),
    };

    let platform = &mut *shared.platform();
    let ruling = platform.gate.rule(call, &shared.options, &mut platform.rng, now);
    let authorization = authorization.unwrap_or_default();
    let answer = match ruling.course {
        Course::Work => work(shared, platform, authorization, ask, &mut record, now),
        Course::WorkThen(answer) => {
            work(shared, platform, authorization, ask, &mut record, now);
            answer
        }
        Course::Instead(answer) => answer,
    };
    record.status = match &answer {
        Answer::Response { status, .. } => Some(*status),
        Answer::Redirect(_) => Some(StatusCode::FOUND.as_u16()),
        Answer::Close => None,
    };
    tracing::debug!(?call, status = record.status, latency_ms = ruling.latency.as_millis(), "call");
    let headers = parts.headers.values().map(HeaderValue::len).sum::<usize>();
    platform.recorder.add(record, headers + body.map_or(0, <[u8]>::len));
    (answer, ruling.latency)
}

/// What the platform answers when nothing is wrong with it.
fn work(
    shared: &Shared,
    platform: &mut Platform,
    authorization: &[u8],
    ask: Ask,
    record: &mut CallRecord,
    now: Instant,
) -> Answer {
    let options = &shared.options;
    let body = match ask {
        Ask::Token(ttl) => platform.issue(options, authorization, ttl, now).map(|token| {
            record.issued = Some(fingerprint(shared, token.as_bytes()));
            json!({ "authorization": token })
        }),
        Ask::Session(ask) => {
            let key = record.idempotency_key.as_deref();
            platform.open(options, authorization, ask, key, now).map(|session| {
                record.session_id = Some(session.id.to_string());
                json!({ "id": session.id, "status": 0, "workflowId": *session.workflow })
            })
        }
    };
    let (status, body) = match body {
        Ok(body) => (StatusCode::OK, body),
        Err((status, why)) => (status, json!({ "message": why })),
    };
    let (status, body) = (status.as_u16(), Some(body.to_string()));
    Answer::Response { status, retry_after: None, body }
}

fn respond(answer: Answer, cut: &Cut) -> Response {
    const ASKED: &str = r#"{"message":"the sandbox was asked to answer this"}"#;
    let (status, body, header) = match answer {
        Answer::Response { status, retry_after, body } => {
            let header = retry_after.map(|value| (header::RETRY_AFTER, value));
            (status, body.map_or_else(|| Body::from(ASKED), Body::from), header)
        }
        Answer::Redirect(to) => (302, Body::empty(), Some((header::LOCATION, to))),
        Answer::Close => {
            cut.cut();
            return Response::default();
        }
    };
    let mut response = Response::new(body);
    // Faults set in code are not checked before they get here: what is no status is a 500, what is
    // no header value is left out.
    *response.status_mut() = StatusCode::from_u16(status)
        .ok()
        .filter(|status| !status.is_informational())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some((name, value)) = header
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.insert(name, value);
    }
    response
}

/// A header as text, unless it is none.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    str::from_utf8(value.as_bytes()).ok().map(str::to_owned)
}

/// Tells secrets apart without holding them.
fn fingerprint(shared: &Shared, secret: &[u8]) -> String {
    Uuid::new_v5(&shared.salt, secret).simple().to_string()
}
