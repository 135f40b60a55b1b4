//! The pages a person meets. They load nothing from anywhere, run no script, and tell no other site
//! where the person came from.

mod html;
mod qr;
mod words;

use std::time::{Duration, Instant};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{
    html::{Value, fill},
    words::Trouble,
};
use super::{escapes, inner_link::InnerLink, options::Options, server::Shared, tokens::Session};

const LAYOUT: &str = include_str!("layout.html");
const STYLE: &str = include_str!("style.css");
const INDEX: &str = include_str!("index.html");
const CAPTURE: &str = include_str!("capture.html");
const MOBILE: &str = include_str!("mobile.html");
const TROUBLE: &str = include_str!("trouble.html");

/// What the sandbox is and offers.
pub(super) fn index(options: &Options, headers: &HeaderMap) -> Response {
    let base = options.public_url.clone().unwrap_or_else(|| {
        format!("http://{}{}", host(headers).unwrap_or("127.0.0.1:8085"), options.path_prefix)
    });
    let key = match options.api_key == Options::DEFAULT_API_KEY {
        true => Options::DEFAULT_API_KEY,
        false => "…",
    };
    let local = ["http://127.", "http://localhost", "http://[::1]", "https://"]
        .iter()
        .any(|start| base.starts_with(start));
    let content = fill(
        INDEX,
        &[
            ("base", Value::text(base.trim_end_matches('/'))),
            ("key", Value::text(key)),
            ("prefix", Value::text(&options.path_prefix)),
            ("allow-http", Value::markup(if local { "" } else { words::ALLOW_HTTP })),
        ],
    );
    page(StatusCode::OK, "Sandbox platform", "index", &content)
}

/// The page a link opens: on to the phone, by its camera, or on here.
pub(super) fn capture(query: Option<&str>, headers: &HeaderMap) -> Response {
    let url = match escapes::parameter(query.unwrap_or_default(), "url") {
        Ok(url) => url,
        Err(why) => return trouble(Trouble::query(why)),
    };
    let link = match InnerLink::read(&url) {
        Ok(link) => link,
        Err(why) => return trouble(Trouble::inner_link(why)),
    };
    let code = qr::svg(link.url).unwrap_or_else(|| words::NO_QR.to_owned());
    let away = match host(headers) {
        Some(here) if !here.eq_ignore_ascii_case(link.host) => {
            fill(words::LEADS_AWAY, &[("host", Value::text(link.host))])
        }
        _ => String::new(),
    };
    let content = fill(
        CAPTURE,
        &[
            ("qr", Value::markup(code)),
            ("url", Value::text(link.url)),
            ("host", Value::text(link.host)),
            ("away", Value::markup(away)),
        ],
    );
    page(StatusCode::OK, "Verify your identity", "capture", &content)
}

/// The page on the person's device: whose session it is, or why the link opens none.
pub(super) fn mobile(shared: &Shared, query: Option<&str>) -> Response {
    let query = query.unwrap_or_default();
    let authorization = escapes::parameter(query, "authorization");
    let session_id = escapes::parameter(query, "sessionId");
    let (authorization, session_id) = match (authorization, session_id) {
        (Ok(authorization), Ok(session_id)) => (authorization, session_id),
        (Err(why), _) | (_, Err(why)) => return trouble(Trouble::query(why)),
    };
    let now = Instant::now();
    let found = shared.platform().tokens.look(&authorization, &session_id, now);
    match found {
        Ok((session, ends)) => ready(&session, ends.saturating_duration_since(now)),
        Err(why) => trouble(Trouble::link(why)),
    }
}

fn ready(session: &Session, left: Duration) -> Response {
    let ends = OffsetDateTime::now_utc() + left;
    let content = fill(
        MOBILE,
        &[
            ("user", Value::text(&*session.user)),
            ("workflow", Value::text(&*session.workflow)),
            ("session", Value::text(&*session.id)),
            ("locale", Value::text(session.locale.as_deref().unwrap_or("not given"))),
            ("ends", Value::text(words::moment(ends))),
            ("ends-exactly", Value::text(ends.format(&Rfc3339).unwrap_or_default())),
            ("left", Value::text(words::left(left))),
        ],
    );
    page(StatusCode::OK, "Your link works", "mobile", &content)
}

/// For what is not there.
pub(super) fn not_found() -> Response {
    trouble(Trouble::no_page())
}

fn trouble(trouble: Trouble) -> Response {
    let content = fill(
        TROUBLE,
        &[
            ("status", Value::text(trouble.status.as_str())),
            ("title", Value::text(trouble.title)),
            ("why", Value::text(trouble.why)),
            ("remedy", Value::text(trouble.remedy)),
        ],
    );
    page(trouble.status, trouble.title, "trouble", &content)
}

fn page(status: StatusCode, title: &str, kind: &str, content: &str) -> Response {
    let page = fill(
        LAYOUT,
        &[
            ("title", Value::text(title)),
            ("kind", Value::text(kind)),
            ("style", Value::markup(STYLE)),
            ("content", Value::markup(content)),
        ],
    );
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

/// The host the person's browser asked for.
fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

#[cfg(test)]
mod tests;
