//! Tests of the sandbox over HTTP.

mod client;
mod webhook;

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use self::client::{KEY, calls, get, post_session, post_token, send, set_faults, start, token};
use super::{
    faults::{Fault, Faults},
    *,
};

#[tokio::test]
async fn a_token_opens_one_session_and_calls_are_recorded() {
    let options = Options { token_alphabet: TokenAlphabet::Hostile, ..Options::default() };
    let sandbox = start(options).await;
    let token = token(&sandbox).await;
    let session = post_session(&sandbox, &token, "k").await;
    assert_eq!(session.status, Some(200), "a token with every hostile character is accepted");
    let id = session.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(session.json()["status"], 0);
    assert_eq!(post_session(&sandbox, &token, "k").await.status, Some(401));

    let records = calls(&sandbox);
    assert_eq!(records.len(), 3);
    assert_eq!(records[0].ttl, Some(3_600));
    assert_ne!(records[0].authorization, records[1].authorization);
    assert_eq!(
        records[0].issued, records[1].authorization,
        "the session call used the issued token"
    );
    assert_eq!(records[1].session_id, Some(id));
    assert_eq!(records[1].workflow_id.as_deref(), Some("w 1"));
    assert_eq!(records[1].external_user_id.as_deref(), Some("ann"));
    assert_eq!(records[1].traceparent.as_deref(), Some("00-1-2-01"));
    assert_eq!(records[2].status, Some(401));

    let stats: Stats = serde_json::from_str(&get(&sandbox, "/sandbox/stats").await.body).unwrap();
    assert_eq!(stats.sessions_by_user["ann"], 1);
    assert_eq!(stats.repeated_idempotency_keys, 1);
    assert_eq!(stats.session_calls.by_status[&401], 1);
    assert_eq!(stats.max_concurrent_calls, 1);
    let response = get(&sandbox, "/sandbox/calls").await;
    assert!(!response.body.contains(&token) && !response.body.contains(KEY));
    assert_eq!(response.json(), serde_json::to_value(&records).unwrap());
    let metadata = json!({"plan": "gold", "externalUserId": "ann"});
    assert_eq!(response.json()[1]["metadata"], metadata);

    assert_eq!(send(&sandbox, "DELETE /sandbox/calls", &[], "").await.status, Some(204));
    assert_eq!((calls(&sandbox).len(), sandbox.stats().sessions_made), (0, 0));
}

#[tokio::test]
async fn an_idempotency_key_is_honoured_when_enabled() {
    let sandbox = start(Options { honour_idempotency_key: true, ..Options::default() }).await;
    let token = token(&sandbox).await;
    let first = post_session(&sandbox, &token, "k").await.json()["id"].clone();
    assert_eq!(post_session(&sandbox, &token, "k").await.json()["id"], first);
    assert_eq!(post_session(&sandbox, &token, "other").await.status, Some(401));
    assert_eq!(sandbox.stats().sessions_made, 1);
}

#[tokio::test]
async fn faults_are_set_over_http_and_expire() {
    let sandbox = start(Options::default()).await;
    let faults = r#"{"token":{"status":429,"retryAfter":7,"times":1}}"#;
    let set = send(&sandbox, "PUT /sandbox/faults", &[], faults).await;
    assert_eq!(set.json(), sandbox.app.backend().admission.faults.to_json());
    let response = post_token(&sandbox).await;
    assert_eq!(response.status, Some(429));
    assert!(response.head.contains("retry-after: 7"), "{}", response.head);
    assert_eq!(get(&sandbox, "/sandbox/faults").await.json(), json!({}));
    assert_eq!(post_token(&sandbox).await.status, Some(200));

    let invalid = send(&sandbox, "PUT /sandbox/faults", &[], r#"{"token":{"statuss":1}}"#).await;
    assert_eq!(invalid.status, Some(400));
    assert!(invalid.body.contains("statuss"), "{}", invalid.body);
}

#[tokio::test]
async fn a_closed_call_gets_no_answer_and_is_carried_out_on_demand() {
    let sandbox = start(Options::default()).await;
    set_faults(&sandbox, Faults::token(Fault::close().times(1)));
    assert_eq!(post_token(&sandbox).await.status, None);
    assert_eq!(sandbox.stats().tokens_issued, 0);
    set_faults(&sandbox, Faults::token(Fault::close().carried_out().times(1)));
    assert_eq!(post_token(&sandbox).await.status, None);
    assert_eq!(sandbox.stats().tokens_issued, 1);
    assert_eq!(sandbox.stats().token_calls.closed, 2);
    assert_eq!(post_token(&sandbox).await.status, Some(200));
}

#[tokio::test]
async fn fault_answers_are_sent_verbatim() {
    let sandbox = start(Options::default()).await;
    set_faults(&sandbox, Faults::both(Fault::body("<html>")));
    let response = post_token(&sandbox).await;
    assert_eq!((response.status, response.body.as_str()), (Some(200), "<html>"));
    set_faults(&sandbox, Faults::both(Fault::redirect("https://elsewhere.example/")));
    let response = post_session(&sandbox, "t", "k").await;
    assert_eq!(response.status, Some(302));
    assert!(response.head.contains("location: https://elsewhere.example/"));
}

#[tokio::test]
async fn a_body_over_64_kib_is_refused() {
    let sandbox = start(Options::default()).await;
    let headers = [("authorization", KEY), ("content-type", "application/json")];
    let post = |length: usize| {
        let body = format!("{{\"ttl\":60}}{}", " ".repeat(length - 10));
        let sandbox = &sandbox;
        let headers = &headers;
        async move { send(sandbox, "POST /api/device/ephemeral", headers, &body).await.status }
    };
    assert_eq!(post(64 * 1024).await, Some(200));
    assert_eq!(post(64 * 1024 + 1).await, Some(413));
}

#[tokio::test]
async fn stopping_ends_simulated_latency() {
    let latency = Duration::from_millis(50);
    let sandbox = start(Options { latency, ..Options::default() }).await;
    let before = Instant::now();
    assert_eq!(post_token(&sandbox).await.status, Some(200));
    assert!(before.elapsed() >= latency);

    set_faults(&sandbox, Faults::token(Fault::slow(Duration::from_secs(3_600))));
    let (response, ()) = tokio::join!(post_token(&sandbox), async {
        while sandbox.stats().token_calls.total < 2 {
            tokio::task::yield_now().await;
        }
        sandbox.stop().await;
    });
    assert_eq!(response.status, Some(200));
    assert!(TcpStream::connect(sandbox.addr()).await.is_err());
}

#[tokio::test]
async fn dropping_the_last_handle_stops_the_sandbox() {
    let sandbox = start(Options::default()).await;
    let addr = sandbox.addr();
    let copy = sandbox.clone();
    drop(sandbox);
    assert_eq!(post_token(&copy).await.status, Some(200));
    drop(copy);
    let stopped = async {
        while TcpStream::connect(addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), stopped).await.unwrap();
}

#[tokio::test]
async fn everything_is_served_below_the_prefix() {
    let sandbox = start(Options { path_prefix: "/idv/".to_owned(), ..Options::default() }).await;
    assert_eq!(sandbox.url(), format!("http://{}/idv", sandbox.addr()));
    for path in ["/idv", "/idv/", "/idv/sandbox/stats"] {
        assert_eq!(get(&sandbox, path).await.status, Some(200), "{path}");
    }
    assert_eq!(get(&sandbox, "/idv/capture").await.status, Some(400));
    for path in ["/", "/idvcapture", "/capture", "/sandbox/stats", "/idv/nothing"] {
        assert_eq!(get(&sandbox, path).await.status, Some(404), "{path}");
    }
    assert_eq!(get(&sandbox, "/idv/api/sessions").await.status, Some(404));
    assert_eq!(sandbox.stats().pages_opened, 3);
}

#[tokio::test]
async fn expired_tokens_are_refused() {
    let sandbox = start(Options::default()).await;
    let expired = token(&sandbox).await;
    assert_eq!(send(&sandbox, "DELETE /sandbox/tokens", &[], "").await.status, Some(204));
    assert_eq!(post_session(&sandbox, &expired, "k").await.status, Some(401));
}

#[tokio::test]
async fn a_deeplink_is_made_by_one_call_and_ended_on_its_page() {
    let options = Options { token_alphabet: TokenAlphabet::Hostile, ..Options::default() };
    let sandbox = start(options).await;
    let headers = [("authorization", KEY), ("content-type", "application/json")];
    let body = r#"{"metadata":{"externalUserId":"ann"},"ttl":60}"#;
    let call = "POST /api/v1/deeplink?workflowId=w%201";
    let mut links = Vec::new();
    for _ in 0..2 {
        let made = send(&sandbox, call, &headers, body).await;
        assert_eq!(made.status, Some(200), "{}", made.body);
        assert_eq!(made.json()["workflowIds"], json!(["w 1"]));
        let time = |name: &str| {
            let text = made.json()[name].as_str().unwrap().to_owned();
            assert_eq!((text.len(), &text[23..]), (24, "Z"), "{text}");
            crate::message::parse_date_time(&text).unwrap()
        };
        let life = time("expiresAt").duration_since(time("createdAt")).unwrap();
        assert_eq!(life, Duration::from_secs(60));
        links.push(made.json()["url"].as_str().unwrap().to_owned());
    }
    assert_eq!(sandbox.stats().deeplink_calls.total, 2);
    assert_eq!(sandbox.stats().sessions_made, 2);

    let page = |link: &str| link.strip_prefix(&sandbox.url()).unwrap().to_owned();
    for (link, end, text, status) in
        [(&links[0], "finish", "It was finished.", 2), (&links[1], "close", "It was closed", 0)]
    {
        assert_eq!(get(&sandbox, &page(link)).await.status, Some(200));
        let session = format!("GET /api/sessions/{}", link.split_once("sessionId=").unwrap().1);
        let before = send(&sandbox, &session, &[("authorization", KEY)], "").await;
        assert_eq!(before.json()["status"], 0);
        assert_eq!(send(&sandbox, &session, &[], "").await.status, Some(401));
        let button = format!("POST {}", page(link));
        let wrong = send(&sandbox, &button, &[], "end=other").await;
        assert_eq!(wrong.status, Some(400));
        let over = send(&sandbox, &button, &[], &format!("end={end}")).await;
        assert!(over.status == Some(200) && over.body.contains(text), "{}", over.body);
        let opened = get(&sandbox, &page(link)).await;
        assert!(opened.status == Some(410) && opened.body.contains(text), "{}", opened.body);
        let after = send(&sandbox, &session, &[("authorization", KEY)], "").await;
        assert_eq!(after.json()["status"], status);
    }
    assert_eq!(get(&sandbox, "/api/health").await.status, Some(200));
    let unknown = send(&sandbox, "GET /api/sessions/x", &[("authorization", KEY)], "").await;
    assert_eq!(unknown.status, Some(404));
    let refused = send(&sandbox, call, &headers[1..], body).await;
    assert_eq!(refused.status, Some(401));
}

#[tokio::test]
async fn sessions_may_end_before_their_tokens() {
    let session_lifetime = Some(Duration::ZERO);
    let sandbox = start(Options { session_lifetime, ..Options::default() }).await;
    let token = token(&sandbox).await;
    let id = post_session(&sandbox, &token, "k").await.json()["id"].clone();
    let path = format!("/mobile?authorization={token}&sessionId={}", id.as_str().unwrap());
    let page = get(&sandbox, &path).await;
    assert!(page.status == Some(410) && page.body.contains("not finished in the time"));
}
