//! What people and tests in other processes steer and watch the sandbox by.

use std::time::Instant;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, Method, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use serde_json::json;

use super::{faults::Faults, server::Shared};

/// Longest body of faults, in bytes: room for an answer that is longer than callers should accept.
const MAX_FAULTS: usize = 1024 * 1024;

/// `/sandbox/stats`, `/sandbox/calls`, `/sandbox/faults`, `/sandbox/tokens`; `None`: no such path
/// or method.
pub(super) async fn serve(
    shared: &Shared,
    method: &Method,
    path: &str,
    body: Body,
) -> Option<Response> {
    Some(match (path, method) {
        ("stats", &Method::GET) => pretty(StatusCode::OK, &shared.stats()),
        ("calls", &Method::GET) => {
            let calls = shared.platform().recorder.calls();
            json(StatusCode::OK, serde_json::to_vec(&calls))
        }
        ("calls", &Method::DELETE) => {
            shared.reset();
            no_content()
        }
        ("faults", &Method::GET) => {
            let faults = shared.platform().gate.faults.to_json();
            pretty(StatusCode::OK, &faults)
        }
        ("faults", &Method::PUT) => set_faults(shared, body).await,
        ("tokens", &Method::DELETE) => {
            shared.platform().tokens.end_all(Instant::now());
            no_content()
        }
        _ => return None,
    })
}

async fn set_faults(shared: &Shared, body: Body) -> Response {
    let Ok(body) = to_bytes(body, MAX_FAULTS).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body must not exceed 1 MiB");
    };
    match Faults::from_json(&body) {
        Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
        Ok(faults) => {
            let answer = faults.to_json();
            shared.platform().gate.faults = faults;
            tracing::info!("the faults were changed");
            pretty(StatusCode::OK, &answer)
        }
    }
}

/// A refusal, as JSON.
pub(super) fn refuse(status: StatusCode, why: &str) -> Response {
    pretty(status, &json!({ "message": why }))
}

fn no_content() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn pretty(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec_pretty(value).map(|mut body| {
        body.push(b'\n');
        body
    });
    json(status, body)
}

fn json(status: StatusCode, body: serde_json::Result<Vec<u8>>) -> Response {
    let (status, body) = match body {
        Ok(body) => (status, body),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
