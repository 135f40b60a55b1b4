use axum::{body::to_bytes, http::HeaderValue};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::sandbox::request::SessionRequest;

const INNER: &str = "http://127.0.0.1:8085/mobile?authorization=Token%20tr-1%2B&sessionId=5f'";

/// `INNER`, percent-encoded.
const ENCODED: &str = "http%3A%2F%2F127.0.0.1%3A8085%2Fmobile%3Fauthorization%3DToken%2520tr-1%252B\
    %26sessionId%3D5f'";

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn capture_page(query: &str, host: &'static str) -> (u16, String) {
    let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
    text(capture(Some(query), &headers)).await
}

#[tokio::test]
async fn the_capture_page_links_to_the_inner_link() {
    let (status, page) = capture_page(&format!("url={ENCODED}"), "127.0.0.1:8085").await;
    assert_eq!(status, 200);
    let href = INNER.replace('&', "&amp;").replace('\'', "&#39;");
    assert!(page.contains(&format!("href=\"{href}\"")), "{page}");
    assert!(page.contains(&qr::svg(INNER).unwrap()));
    assert!(page.contains("id=\"continue\""));
    assert!(!page.contains("class=\"other-host\""));
}

#[tokio::test]
async fn the_capture_page_warns_of_another_host() {
    let (_, page) = capture_page(&format!("url={ENCODED}"), "idv.example.com").await;
    assert!(page.contains("<p class=\"other-host\">This link leads to <bdi>127.0.0.1:8085</bdi>"));
}

#[tokio::test]
async fn a_link_too_long_for_a_qr_code_has_a_button() {
    let query = format!("url={ENCODED}{}", "a".repeat(3_000));
    let (status, page) = capture_page(&query, "127.0.0.1:8085").await;
    assert_eq!(status, 200);
    assert!(page.contains("too long for a QR code") && page.contains("id=\"continue\""));
}

#[tokio::test]
async fn the_capture_page_shows_no_other_link() {
    for query in [
        "",
        "url=",
        "url=javascript:alert(1)//mobile?authorization=t",
        "url=https%3A%2F%2Fevil.example%2F",
        "url=%FF",
        // The inner link was not encoded, so its second parameter belongs to the outer link.
        "url=http://127.0.0.1:8085/mobile?authorization=t&sessionId=s",
    ] {
        let (status, page) = capture_page(query, "127.0.0.1:8085").await;
        assert_eq!(status, 400, "{query}");
        assert!(page.contains("id=\"error\"") && !page.contains("id=\"continue\""), "{query}");
        assert!(!page.contains("evil.example") && !page.contains("alert(1)"), "{query}");
    }
}

/// Returns a sandbox with a session for a user, the query of its link, and the session id.
fn sandbox_with_session(user: &str) -> (App, String, String) {
    let options = Options::default();
    let app = App::new(options.clone(), CancellationToken::new());
    let now = Instant::now();
    let ttl = Ok(Duration::from_secs(3_600));
    let token = app.backend().issue_token(&options, b"sandbox-key", ttl, now).unwrap();
    let request = SessionRequest {
        user: user.into(),
        workflow: "onboarding & <b>".into(),
        locale: Some("de".into()),
    };
    let mut backend = app.backend();
    let session = backend.make_session(&options, token.as_bytes(), Ok(request), None, now);
    let id = session.unwrap().id.to_string();
    drop(backend);
    let query = format!("authorization={token}&sessionId={id}");
    (app, query, id)
}

async fn mobile_page(app: &App, query: &str) -> (u16, String) {
    text(mobile(app, Some(query))).await
}

#[tokio::test]
async fn the_mobile_page_shows_the_session() {
    let (app, query, id) = sandbox_with_session("<script>\u{202e}ann\"");
    let (status, page) = mobile_page(&app, &query).await;
    assert_eq!(status, 200);
    assert!(page.contains("<bdi id=\"user\">&lt;script&gt;\u{202e}ann&quot;</bdi>"), "{page}");
    assert!(page.contains("<bdi id=\"workflow\">onboarding &amp; &lt;b&gt;</bdi>"));
    assert!(page.contains(&format!("<code id=\"session\">{id}</code>")));
    assert!(page.contains("<bdi id=\"locale\">de</bdi>"));
    assert!(page.contains("in 59 minutes") || page.contains("in 60 minutes"));
    assert!(!page.contains("tr-"), "the token is not shown");
}

#[tokio::test]
async fn the_mobile_page_explains_why_a_link_does_not_work() {
    let (app, query, id) = sandbox_with_session("ann");
    let token = query.split_once('&').unwrap().0;
    for (query, status) in [
        (String::new(), 400),
        (token.to_owned(), 400),
        (format!("sessionId={id}"), 400),
        (format!("{token}%&sessionId={id}"), 400),
        (format!("{query}&sessionId={id}"), 400),
        (format!("{token}+&sessionId={id}"), 404),
        (format!("{token}&sessionId=other"), 403),
    ] {
        let (got, page) = mobile_page(&app, &query).await;
        assert_eq!(got, status, "{query}");
        assert!(page.contains("id=\"error\"") && !page.contains("ann"), "{page}");
    }
    app.backend().tokens.expire_all(Instant::now());
    assert_eq!(mobile_page(&app, &query).await.0, 410);
}

#[tokio::test]
async fn the_index_page_shows_no_key_but_the_default() {
    let options = Options { path_prefix: "/idv".to_owned(), ..Options::default() };
    let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("a:1"))]);
    let (_, page) = text(index(&options, &headers)).await;
    assert!(page.contains("HANDOFF_IDV_API_KEY=sandbox-key"));
    assert!(page.contains("HANDOFF_IDV_URL=http://a:1/idv"));
    assert!(page.contains("href=\"/idv/sandbox/stats\""));
    assert!(page.contains("HANDOFF_IDV_ALLOW_HTTP=true"), "plain http over a network is refused");

    let options = Options { api_key: "s3cret".to_owned(), ..options };
    let (_, page) = text(index(&options, &headers)).await;
    assert!(!page.contains("s3cret"));
}

#[tokio::test]
async fn pages_load_nothing_and_are_not_cached() {
    let response = not_found();
    let header = |name| response.headers()[name].to_str().unwrap();
    assert!(header(header::CONTENT_SECURITY_POLICY).starts_with("default-src 'none';"));
    assert_eq!(header(header::REFERRER_POLICY), "no-referrer");
    assert_eq!(header(header::CACHE_CONTROL), "no-store");
    assert_eq!(header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    let (status, page) = text(response).await;
    assert_eq!(status, 404);
    assert!(page.contains("lang=\"en\"") && page.contains("name=\"viewport\""));
}
