//! Which path is what.

use std::sync::Arc;

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{Method, StatusCode},
    response::Response,
};

use super::{api, connection::Cut, control, pages, record::Call, server::Shared};

/// Serves a request. Paths are few, and below a prefix that is known at run time only: a `match`
/// says more than a router.
pub(super) async fn dispatch(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    let Some(path) = path.strip_prefix(&shared.options.path_prefix) else {
        return pages::not_found();
    };
    let method = match request.method() {
        // The server leaves the body out by itself.
        &Method::HEAD => &Method::GET,
        method => method,
    };
    match (path, method) {
        ("/api/device/ephemeral", &Method::POST) => {
            return api::serve(&shared, &cut, Call::Token, request).await;
        }
        ("/api/sessions", &Method::POST) => {
            return api::serve(&shared, &cut, Call::Session, request).await;
        }
        _ => {}
    }
    if let Some(path) = path.strip_prefix("/sandbox/") {
        let method = method.clone();
        let served = control::serve(&shared, &method, path, request.into_body()).await;
        return served.unwrap_or_else(|| {
            control::refuse(StatusCode::NOT_FOUND, "the sandbox has no such path and method")
        });
    }
    if path.starts_with("/api/") {
        return control::refuse(StatusCode::NOT_FOUND, "the platform has no such path and method");
    }
    if method != Method::GET {
        return pages::not_found();
    }
    let response = match path {
        "" | "/" => pages::index(&shared.options, request.headers()),
        "/capture" => pages::capture(request.uri().query(), request.headers()),
        "/mobile" => pages::mobile(&shared, request.uri().query()),
        _ => return pages::not_found(),
    };
    shared.platform().recorder.counts.pages_opened += 1;
    response
}
