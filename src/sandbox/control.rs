//! The control endpoints: `/sandbox/stats`, `/sandbox/calls`, `/sandbox/faults`, `/sandbox/tokens`.

use std::time::Instant;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderValue, Method, StatusCode, header},
    response::Response,
};
use serde::Serialize;
use serde_json::json;

use super::{app::App, faults::Faults, log};

/// Longest accepted description of faults, in bytes.
///
/// It leaves room for a body longer than the 64 KiB that callers of the platform should accept.
const MAX_FAULTS: usize = 1024 * 1024;

/// Serves a path below `/sandbox/`. `None`: there is no such path and method.
pub(super) async fn serve(app: &App, method: &Method, path: &str, body: Body) -> Option<Response> {
    Some(match (path, method) {
        ("stats", &Method::GET) => pretty(StatusCode::OK, &app.stats()),
        ("calls", &Method::GET) => {
            let calls = serde_json::to_vec(&app.backend().recorder.calls());
            json(StatusCode::OK, calls)
        }
        ("calls", &Method::DELETE) => {
            app.reset_records();
            no_content()
        }
        ("faults", &Method::GET) => {
            let faults = app.backend().admission.faults.to_json();
            pretty(StatusCode::OK, &faults)
        }
        ("faults", &Method::PUT) => set_faults(app, body).await,
        ("tokens", &Method::DELETE) => {
            app.backend().expire_tokens(Instant::now());
            no_content()
        }
        _ => return None,
    })
}

async fn set_faults(app: &App, body: Body) -> Response {
    let Ok(body) = to_bytes(body, MAX_FAULTS).await else {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "the body must not exceed 1 MiB");
    };
    match Faults::from_json(&body) {
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
        Ok(faults) => {
            let answer = faults.to_json();
            app.backend().admission.faults = faults;
            log::faults_replaced();
            pretty(StatusCode::OK, &answer)
        }
    }
}

/// An error response with a JSON body.
pub(super) fn error(status: StatusCode, message: &str) -> Response {
    pretty(status, &json!({ "message": message }))
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
