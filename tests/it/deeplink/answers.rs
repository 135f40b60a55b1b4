//! Answers to the one call: what ends a link, and what is broken.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::start;
use crate::support::{
    Answer, log_text,
    platform::{Call, deeplink, success},
};

const GOOD: &str = "https://idv.example.com/mobile?authorization=Token%20t&sessionId=s";

fn with(url: &str) -> Answer {
    Answer::json(&json!({ "url": url, "expiresAt": "2999-01-01T00:00:00.000Z" }))
}

#[tokio::test]
async fn broken_answer_is_retried_and_no_part_of_it_is_published() {
    let broken = [
        Answer::json(&json!({})),
        Answer::json(&json!([GOOD])),
        Answer::json(&json!({ "url": 7 })),
        with(""),
        with("/mobile?authorization=t&sessionId=s"),
        with("ftp://idv.example.com/mobile?authorization=t&sessionId=s"),
        with("https://idv.example.com/mobile"),
        with("https://idv.example.com/mobile?authorization=t"),
        with("https://idv.example.com/mobile?authorization=&sessionId=s"),
        with("https://idv.example.com/mobile?authorization=t&sessionId=s&sessionId=s"),
        with("https://idv.example.com/mobile?authorization=t&sessionId=%FF"),
        with("https://u:b0dy-must-not-leak@idv.example.com/mobile?authorization=t&sessionId=s"),
        with("https://idv.example.com/mobile?authorization=t t&sessionId=s"),
        with("https://idv.example.com/m?authorization=t&sessionId=s"),
        with(&format!("{GOOD}&x={}", "x".repeat(70 * 1024))),
    ];
    let count = broken.len();
    let script = move |call: &Call| broken.get(call.nth).cloned().unwrap_or_else(|| success(call));
    let mut env = start(script).await;
    // Each broken answer is one request's first attempt: its retry comes last.
    env.set("IDV_PUBLIC_URL", "https://idv.example.org")
        .set("CONCURRENCY", "1")
        .set("RETRY_BUDGET", "0s")
        .set("RETRY_DELAYS", "1s");
    let worker = env.start_worker().await;
    env.publish_requests(0..count).await;
    env.expect_all_ready(count).await;
    let outcome = "handoff_platform_calls_total{call=\"deeplink\",outcome=\"broken_answer\"}";
    assert_eq!(worker.metric(outcome).await, count as f64);
    let output = worker.stop_and_output().await;
    assert!(!output.contains("must-not-leak"), "{output}");
}

#[tokio::test]
async fn session_id_comes_through_whatever_it_contains() {
    let ids = [
        "\u{0}\u{1}\t\n\r\u{7f}\u{85}",
        " +%2B&=;#?/\\\"'<>{}|^`[]:@!$*(),~",
        "é e\u{301} 日本語 \u{202e}שלום\u{202c} 🙂👩\u{200d}👩",
        "\u{feff}\u{fffd}\u{ffff}\u{2028}\u{10ffff}",
    ];
    let encode = |id: &str| id.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let urls = ids.map(|id| format!("http://x/mobile?authorization=%20+&sessionId={}", encode(id)));
    let answers = urls.clone();
    let mut env = start(move |call: &Call| with(&answers[call.nth])).await;
    env.set("CONCURRENCY", "1");
    let _worker = env.start_worker().await;
    for (n, (id, url)) in ids.iter().zip(&urls).enumerate() {
        for reused in [false, true] {
            env.publish_request(&format!("r-{n}-{reused}"), &format!("user {n}")).await;
            let data = env.rabbitmq.next_event().await.data();
            assert_eq!((&data["sessionId"], &data["reused"]), (&json!(id), &json!(reused)));
            assert_eq!((&data["url"], &data["mobileUrl"]), (&json!(url), &json!(url)));
        }
    }
}

#[tokio::test]
async fn link_ends_at_its_expiry_or_after_its_ttl_whichever_comes_first() {
    let soon = OffsetDateTime::now_utc() + Duration::minutes(20);
    let soon = soon.replace_nanosecond(0).unwrap();
    let expiries = [
        json!(soon.format(&Rfc3339).unwrap()),
        json!("2999-01-01T00:00:00.000Z"),
        json!("2020-01-01T00:00:00.000Z"),
        json!("soon"),
        json!(1_772_446_504),
        Value::Null,
    ];
    let answers = expiries.clone();
    let script = move |call: &Call| {
        Answer::json(&json!({ "url": deeplink(call.nth), "expiresAt": answers[call.nth] }))
    };
    let mut env = start(script).await;
    env.set("CONCURRENCY", "1");
    let worker = env.start_worker().await;
    for (n, expiry) in expiries.iter().enumerate() {
        let before = OffsetDateTime::now_utc();
        env.publish_request(&format!("r-{n}"), &format!("user {n}")).await;
        let data = env.rabbitmq.next_event().await.data();
        let end = OffsetDateTime::parse(data["expiresAt"].as_str().unwrap(), &Rfc3339).unwrap();
        if n == 0 {
            assert_eq!(end, soon);
        } else {
            let life = end - before;
            let hour = Duration::hours(1);
            assert!(
                (hour - Duration::seconds(1)..hour + Duration::seconds(30)).contains(&life),
                "{expiry}"
            );
        }
    }
    worker.wait_for_log(log_text::EXPIRY_IGNORED).await;
    assert_eq!(worker.log_lines(log_text::EXPIRY_IGNORED).len(), 1, "one warning a minute");
}
