//! The pages that people open.
//!
//! They load nothing, run no script, and send no referrer.

mod html;
mod qr;
mod texts;

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use axum::{
    body::to_bytes,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{html::fill, texts::ErrorPage};
use super::{
    app::App,
    inner_link::InnerLink,
    options::Options,
    query::{self, QueryError},
    tokens::{LinkError, SessionEnd, StoredSession},
};

/// Longest accepted form, in bytes.
const MAX_FORM: usize = 1024;

const LAYOUT: &str = include_str!("layout.html");
const STYLE: &str = include_str!("style.css");
const INDEX: &str = include_str!("index.html");
const CAPTURE: &str = include_str!("capture.html");
const MOBILE: &str = include_str!("mobile.html");
const ERROR: &str = include_str!("error.html");

/// Shows what the sandbox is and what it offers.
pub(super) fn index(options: &Options, headers: &HeaderMap) -> Response {
    let base = options.base_url(host(headers));
    let key = if options.api_key == Options::DEFAULT_API_KEY { &options.api_key } else { "…" };
    // The worker accepts plain http for loopback hosts only.
    let needs_no_setting = ["http://127.", "http://localhost", "http://[::1]", "https://"]
        .iter()
        .any(|start| base.starts_with(start));
    let content = fill(
        INDEX,
        &[
            ("base", &base),
            ("key", key),
            ("prefix", &options.path_prefix),
            ("allow-http", if needs_no_setting { "" } else { texts::ALLOW_HTTP }),
        ],
    );
    page(StatusCode::OK, "Sandbox platform", "index", &content)
}

/// The page that a link opens: a QR code for the phone, and a button to continue on this device.
pub(super) fn capture(query: Option<&str>, headers: &HeaderMap) -> Response {
    let url = match query::parameter(query.unwrap_or_default(), "url") {
        Ok(url) => url,
        Err(error) => return error_page(ErrorPage::query(error)),
    };
    let link = match InnerLink::parse(&url) {
        Ok(link) => link,
        Err(error) => return error_page(ErrorPage::inner_link(error)),
    };
    let qr = match qr::svg(link.url) {
        Some(svg) => format!("<div id=\"qr\" role=\"img\" aria-label=\"QR code\">{svg}</div>"),
        None => texts::NO_QR.to_owned(),
    };
    let other_host = match host(headers) {
        Some(host) if !host.eq_ignore_ascii_case(link.host) => {
            fill(texts::OTHER_HOST, &[("host", link.host)])
        }
        _ => String::new(),
    };
    let content = fill(
        CAPTURE,
        &[("qr", &qr), ("url", link.url), ("host", link.host), ("other-host", &other_host)],
    );
    page(StatusCode::OK, "Verify your identity", "capture", &content)
}

/// The page on the person's device: shows the session, or why the link opens none.
pub(super) fn mobile(app: &App, query: Option<&str>) -> Response {
    let (authorization, session_id) = match link_parameters(query.unwrap_or_default()) {
        Ok(parameters) => parameters,
        Err(error) => return error_page(ErrorPage::query(error)),
    };
    let now = Instant::now();
    let found = app.backend().tokens.find(&authorization, &session_id, now);
    match found {
        Ok((session, expires_at)) => {
            session_page(&session, expires_at.saturating_duration_since(now))
        }
        Err(error) => error_page(ErrorPage::link(error)),
    }
}

/// Ends the session of the page whose button was clicked.
pub(super) async fn end_session(app: &App, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_FORM).await.unwrap_or_default();
    let end = match &body[..] {
        b"end=finish" => SessionEnd::Finished,
        b"end=close" => SessionEnd::Closed,
        _ => return error_page(ErrorPage::form()),
    };
    let (authorization, session_id) = match link_parameters(parts.uri.query().unwrap_or_default()) {
        Ok(parameters) => parameters,
        Err(error) => return error_page(ErrorPage::query(error)),
    };
    let ended = app.backend().end_session(&authorization, &session_id, end, Instant::now());
    error_page(match ended {
        Ok(must_report) => {
            if must_report {
                app.report_end(&session_id);
            }
            ErrorPage { status: StatusCode::OK, ..ErrorPage::link(LinkError::Ended(end)) }
        }
        Err(error) => ErrorPage::link(error),
    })
}

fn link_parameters(query: &str) -> Result<(Cow<'_, str>, Cow<'_, str>), QueryError> {
    Ok((query::parameter(query, "authorization")?, query::parameter(query, "sessionId")?))
}

fn session_page(session: &StoredSession, left: Duration) -> Response {
    let expires_at = OffsetDateTime::now_utc() + left;
    let content = fill(
        MOBILE,
        &[
            ("user", &session.user),
            ("workflow", &session.workflow),
            ("session", &session.id),
            ("locale", session.locale.as_deref().unwrap_or("not given")),
            ("expires-at", &texts::time_of_day(expires_at)),
            ("expires-at-rfc3339", &expires_at.format(&Rfc3339).unwrap_or_default()),
            ("left", &texts::duration(left)),
        ],
    );
    page(StatusCode::OK, "Your link works", "mobile", &content)
}

pub(super) fn not_found() -> Response {
    error_page(ErrorPage::not_found())
}

fn error_page(error: ErrorPage) -> Response {
    let content = fill(
        ERROR,
        &[
            ("status", error.status.as_str()),
            ("title", error.title),
            ("problem", &error.problem),
            ("remedy", error.remedy),
        ],
    );
    page(error.status, error.title, "error", &content)
}

fn page(status: StatusCode, title: &str, kind: &str, content: &str) -> Response {
    let page =
        fill(LAYOUT, &[("title", title), ("kind", kind), ("style", STYLE), ("content", content)]);
    let mut response = Response::new(page.into());
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; \
             form-action 'self'; frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

#[cfg(test)]
mod tests;
