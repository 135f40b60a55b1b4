//! The pages that people open.
//!
//! They load nothing, run no script, and send no referrer.

mod html;
mod qr;
mod texts;

use std::time::{Duration, Instant};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{html::fill, texts::ErrorPage};
use super::{app::App, inner_link::InnerLink, options::Options, query, tokens::StoredSession};

const LAYOUT: &str = include_str!("layout.html");
const STYLE: &str = include_str!("style.css");
const INDEX: &str = include_str!("index.html");
const CAPTURE: &str = include_str!("capture.html");
const MOBILE: &str = include_str!("mobile.html");
const ERROR: &str = include_str!("error.html");

/// Shows what the sandbox is and what it offers.
pub(super) fn index(options: &Options, headers: &HeaderMap) -> Response {
    let base = options.public_url.clone().unwrap_or_else(|| {
        format!("http://{}{}", host(headers).unwrap_or("127.0.0.1:8085"), options.path_prefix)
    });
    let key = if options.api_key == Options::DEFAULT_API_KEY { &options.api_key } else { "…" };
    // The worker accepts plain http for loopback hosts only.
    let needs_no_setting = ["http://127.", "http://localhost", "http://[::1]", "https://"]
        .iter()
        .any(|start| base.starts_with(start));
    let content = fill(
        INDEX,
        &[
            ("base", base.trim_end_matches('/')),
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
    let query = query.unwrap_or_default();
    let authorization = query::parameter(query, "authorization");
    let session_id = query::parameter(query, "sessionId");
    let (authorization, session_id) = match (authorization, session_id) {
        (Ok(authorization), Ok(session_id)) => (authorization, session_id),
        (Err(error), _) | (_, Err(error)) => return error_page(ErrorPage::query(error)),
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
             form-action 'none'; frame-ancestors 'none'",
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
