//! Maps paths to handlers.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{Method, StatusCode},
    response::Response,
};

use super::{
    api,
    app::App,
    call::{ApiCall, Endpoint},
    control,
    hook::{Hook, Simulation},
    pages,
};

/// What every request needs: the shared state, and the hook if there is one.
pub(super) struct Service {
    pub(super) app: Arc<App>,
    pub(super) hook: Option<Hook>,
}

impl Service {
    /// Serves a request.
    ///
    /// A `match` on the path is shorter than a router here: there are few paths, and their common
    /// prefix is known only at run time.
    pub(super) async fn serve(&self, request: Request) -> Response {
        match self.endpoint(&request) {
            Some(endpoint) => self.serve_call(endpoint, request).await,
            None => serve_other(&self.app, request).await,
        }
    }

    /// The endpoint that a request calls, if any. A hook receives calls below any prefix, so that
    /// a test can identify callers by their base URL.
    fn endpoint(&self, request: &Request) -> Option<Endpoint> {
        if request.method() != Method::POST {
            return None;
        }
        let path = request.uri().path();
        Endpoint::ALL.into_iter().find(|endpoint| {
            let prefix = path.strip_suffix(endpoint.path());
            prefix.is_some_and(|it| self.hook.is_some() || it == self.app.options.path_prefix)
        })
    }

    async fn serve_call(&self, endpoint: Endpoint, request: Request) -> Response {
        let _in_flight = self.app.call_in_flight();
        let call = ApiCall::read(endpoint, request).await;
        match &self.hook {
            Some(hook) => hook(call, Simulation(Arc::clone(&self.app))).await,
            None => api::answer(&self.app, &call).await,
        }
    }
}

/// Serves the control endpoints and the pages.
async fn serve_other(app: &App, request: Request) -> Response {
    let Some(path) = request.uri().path().strip_prefix(&app.options.path_prefix) else {
        return pages::not_found();
    };
    let method = match request.method() {
        // The server omits the body by itself.
        &Method::HEAD => Method::GET,
        method => method.clone(),
    };
    if let Some(path) = path.strip_prefix("/sandbox/") {
        let path = path.to_owned();
        let response = control::serve(app, &method, &path, request.into_body()).await;
        return response.unwrap_or_else(|| {
            control::error(StatusCode::NOT_FOUND, "the sandbox has no such path and method")
        });
    }
    if path.starts_with("/api/") {
        let response = api::other(app, &method, path, request.headers());
        return response.unwrap_or_else(|| {
            control::error(StatusCode::NOT_FOUND, "the platform has no such path and method")
        });
    }
    if method == Method::POST && path == "/mobile" {
        return pages::end_session(app, request).await;
    }
    if method != Method::GET {
        return pages::not_found();
    }
    let response = match path {
        "" | "/" => pages::index(&app.options, request.headers()),
        "/capture" => pages::capture(request.uri().query(), request.headers()),
        "/mobile" => pages::mobile(app, request.uri().query()),
        _ => return pages::not_found(),
    };
    app.backend().recorder.counts.pages_opened += 1;
    response
}
