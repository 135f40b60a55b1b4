//! The simulated answers to the platform's API calls.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    admission::AdmissionAction,
    app::App,
    backend::Backend,
    call::{ApiCall, ClosedConnection, Endpoint},
    faults::Answer,
    log, query,
    record::CallRecord,
    request::{self, Refusal, SessionRequest},
};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The parsed request of a call.
enum Parsed {
    Token(Result<Duration, Refusal>),
    Session(Result<SessionRequest, Refusal>),
    Deeplink(Result<(SessionRequest, Duration), Refusal>),
}

/// The answer to a token call.
#[derive(Serialize)]
struct TokenAnswer<'a> {
    authorization: &'a str,
}

/// The answer to a session call.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionAnswer<'a> {
    id: &'a str,
    status: u8,
    workflow_id: &'a str,
}

/// The answer to a deeplink call.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeeplinkAnswer<'a> {
    url: &'a str,
    created_at: String,
    expires_at: String,
    workflow_ids: [&'a str; 1],
}

fn to_json(body: &impl Serialize) -> String {
    // Only maps with other keys than strings fail.
    serde_json::to_string(body).unwrap_or_default()
}

/// Answers a call.
///
/// The work is done before the simulated latency, so that a caller that times out leaves a token
/// or a session behind, as it may on the real platform.
pub(super) async fn answer(app: &App, call: &ApiCall) -> Response {
    let (answer, latency) = process(app, call);
    if !latency.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(latency) => {}
            () = app.stopping.cancelled() => {}
        }
    }
    respond(answer)
}

fn process(app: &App, call: &ApiCall) -> (Answer, Duration) {
    let now = Instant::now();
    let headers = call.headers();
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let mut record = CallRecord::new(call.endpoint, app.millis_at(call.arrived_at));
    record.authorization = authorization.map(|secret| app.fingerprint(secret));
    record.idempotency_key = text(headers, &IDEMPOTENCY_KEY);
    record.traceparent = text(headers, &TRACEPARENT);
    record.tracestate = text(headers, &TRACESTATE);
    let parsed = match call.endpoint {
        Endpoint::Token => Parsed::Token(request::token(call, &mut record)),
        Endpoint::Session => Parsed::Session(request::session(call, &mut record)),
        Endpoint::Deeplink => Parsed::Deeplink(request::deeplink(call, &mut record)),
    };
    let base = match call.endpoint {
        Endpoint::Deeplink => app.options.base_url(text(headers, &header::HOST).as_deref()),
        Endpoint::Token | Endpoint::Session => String::new(),
    };

    let backend = &mut *app.backend();
    let decision = backend.admission.decide(call.endpoint, &app.options, &mut backend.rng, now);
    let authorization = authorization.unwrap_or_default();
    let answer = match decision.action {
        AdmissionAction::Serve => {
            serve(app, backend, authorization, parsed, &base, &mut record, now)
        }
        AdmissionAction::ServeThenAnswer(answer) => {
            serve(app, backend, authorization, parsed, &base, &mut record, now);
            answer
        }
        AdmissionAction::Answer(answer) => answer,
    };
    record.status = match &answer {
        Answer::Response { status, .. } => Some(*status),
        Answer::Redirect(_) => Some(StatusCode::FOUND.as_u16()),
        Answer::Close => None,
    };
    log::call_answered(call.endpoint, record.status, decision.latency);
    let sent = headers.values().map(HeaderValue::len).sum::<usize>() + call.body().len();
    backend.recorder.add(record, sent);
    (answer, decision.latency)
}

/// Issues a token or makes a session, and returns the answer of a healthy platform.
fn serve(
    app: &App,
    backend: &mut Backend,
    authorization: &[u8],
    parsed: Parsed,
    base: &str,
    record: &mut CallRecord,
    now: Instant,
) -> Answer {
    let body = match parsed {
        Parsed::Token(ttl) => {
            backend.issue_token(&app.options, authorization, ttl, now).map(|token| {
                record.issued = Some(app.fingerprint(token.as_bytes()));
                to_json(&TokenAnswer { authorization: &token })
            })
        }
        Parsed::Session(session) => {
            let key = record.idempotency_key.as_deref();
            backend.make_session(&app.options, authorization, session, key, now).map(|session| {
                record.session_id = Some(session.id.to_string());
                to_json(&SessionAnswer {
                    id: &session.id,
                    status: 0,
                    workflow_id: &session.workflow,
                })
            })
        }
        Parsed::Deeplink(request) => {
            let key = record.idempotency_key.as_deref();
            let made = backend.make_deeplink(&app.options, authorization, request, key, now);
            made.map(|(token, session, expires_at)| {
                record.issued = Some(app.fingerprint(token.as_bytes()));
                record.session_id = Some(session.id.to_string());
                let created_at = OffsetDateTime::now_utc();
                to_json(&DeeplinkAnswer {
                    url: &format!(
                        "{base}/mobile?authorization={}&sessionId={}",
                        query::encode(&token),
                        query::encode(&session.id)
                    ),
                    created_at: millis_utc(created_at),
                    expires_at: millis_utc(created_at + expires_at.saturating_duration_since(now)),
                    workflow_ids: [&session.workflow],
                })
            })
        }
    };
    let (status, body) = match body {
        Ok(body) => (StatusCode::OK, body),
        Err(Refusal { status, message }) => (status, to_json(&json!({ "message": message }))),
    };
    Answer::Response { status: status.as_u16(), retry_after: None, body: Some(body) }
}

/// Formats a time as the platform does: with milliseconds and `Z`.
fn millis_utc(time: OffsetDateTime) -> String {
    // A whole number of milliseconds, shown with three digits even if they are zeros.
    let millis = time.millisecond();
    let time = time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default();
    time.replace('Z', &format!(".{millis:03}Z"))
}

/// Answers the platform's other paths. `None`: there is no such path and method.
pub(super) fn other(
    app: &App,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<Response> {
    if method != Method::GET {
        return None;
    }
    if path == "/api/health" {
        return Some(respond(answer_json(StatusCode::OK, &json!({ "status": "ok" }))));
    }
    let id = path.strip_prefix("/api/sessions/")?;
    let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if authorization != Some(app.options.api_key.as_bytes()) {
        let message = json!({ "message": "Authorization must be the API key" });
        return Some(respond(answer_json(StatusCode::UNAUTHORIZED, &message)));
    }
    let backend = app.backend();
    Some(respond(match query::decode(id).and_then(|id| backend.tokens.session(&id)) {
        Some(session) => answer_json(
            StatusCode::OK,
            &SessionAnswer {
                id: &session.id,
                status: session.status(),
                workflow_id: &session.workflow,
            },
        ),
        None => answer_json(StatusCode::NOT_FOUND, &json!({ "message": "no such session" })),
    }))
}

fn answer_json(status: StatusCode, body: &impl Serialize) -> Answer {
    Answer::Response { status: status.as_u16(), retry_after: None, body: Some(to_json(body)) }
}

fn respond(answer: Answer) -> Response {
    const DEFAULT_BODY: &str =
        r#"{"message":"this answer is a fault that was set on the sandbox"}"#;
    let (status, body, header) = match answer {
        Answer::Response { status, retry_after, body } => {
            let header = retry_after.map(|value| (header::RETRY_AFTER, value));
            (status, body.map_or_else(|| Body::from(DEFAULT_BODY), Body::from), header)
        }
        Answer::Redirect(to) => (302, Body::empty(), Some((header::LOCATION, to))),
        Answer::Close => {
            let mut response = Response::default();
            response.extensions_mut().insert(ClosedConnection);
            return response;
        }
    };
    let mut response = Response::new(body);
    // Faults that are set in code are not validated. An invalid status becomes 500, and an invalid
    // header value is omitted.
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

/// The value of a header, if it is UTF-8.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    str::from_utf8(value.as_bytes()).ok().map(str::to_owned)
}
