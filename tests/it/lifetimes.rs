//! How long links live: no longer than their tokens and sessions.

use std::time::Duration;

use futures_util::future::join_all;
use handoff::sandbox::{Options, Sandbox};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::net::TcpListener;

use crate::support::{TestEnv, platform::API_KEY, rabbitmq::Message, redis::RedisEntry};

/// When the link of an event ends, in milliseconds since 1970.
fn end_ms(event: &Message) -> i128 {
    let data = event.data();
    let end = OffsetDateTime::parse(data["expiresAt"].as_str().unwrap(), &Rfc3339).unwrap();
    end.unix_timestamp_nanos() / 1_000_000
}

fn now_ms() -> i128 {
    OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000
}

#[tokio::test]
async fn link_ends_with_its_session_and_is_not_handed_out_beyond_it() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TOKEN_TTL", "1h").set("IDV_SESSION_TTL", "4s").set("LINK_MIN_LIFE", "1s");
    let _worker = env.start_worker().await;
    let asked_ms = now_ms();
    env.publish_request("r-0", "ann").await;
    let first = env.rabbitmq.next_event().await;
    let answered_ms = now_ms();
    let end = end_ms(&first);
    assert!((asked_ms + 4_000..=answered_ms + 4_000).contains(&end), "{}", end - asked_ms);
    let ttl: serde_json::Value = env.platform.token_calls()[0].body["ttl"].clone();
    assert_eq!(ttl, 3_600, "the token's life is not the session's");
    let [RedisEntry { ttl_ms, .. }] = &env.redis_entries().await[..] else { panic!("one key") };
    assert!((1..=3_000).contains(ttl_ms), "{ttl_ms}");

    for n in 1.. {
        let before_ms = now_ms();
        env.publish_request(&format!("r-{n}"), "ann").await;
        let event = env.rabbitmq.next_event().await;
        if event.data()["reused"] == false {
            assert!(now_ms() >= end - 1_000, "a link with more than its minimum life is reused");
            assert!(end_ms(&event) > end);
            break;
        }
        assert_eq!(end_ms(&event), end, "the end of the session, not of the reuse");
        assert!(end - before_ms > 0, "{} ms after the end", before_ms - end);
    }
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn link_shorter_than_the_minimum_is_reused_for_half_of_its_life() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TOKEN_TTL", "6s").set("LINK_MIN_LIFE", "5s");
    let _worker = env.start_worker().await;
    env.publish_request("r-0", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    let [RedisEntry { ttl_ms, .. }] = &env.redis_entries().await[..] else { panic!("one key") };
    assert!((1_001..=3_000).contains(ttl_ms), "half of 6 s, not 6 s less 5 s: {ttl_ms}");
}

#[tokio::test]
async fn link_of_release_0_1_ends_with_its_session() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TOKEN_TTL", "1h").set("IDV_SESSION_TTL", "10m").set("LINK_MIN_LIFE", "1m");
    let _worker = env.start_worker().await;
    let hour_ms = 3_600_000;
    for (user, age_ms, is_reused) in [("ann", 60_000, true), ("bob", 599_000, false)] {
        // Make a link, and put in its place what release 0.1 stored: it gave links the end of their tokens.
        env.publish_request(&format!("{user}-0"), user).await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
        let entries = env.redis_entries().await;
        let [entry] = &entries[..] else { panic!("one key") };
        let end = now_ms() - age_ms + hour_ms;
        let link = json!({ "t": "Token old", "e": end, "s": "session-old" });
        let stamp = "0123456789abcdef0123456789abcdef";
        env.set_redis_value(&entry.key, format!("{stamp}|{link}").as_bytes()).await;
        env.publish_request(&format!("{user}-1"), user).await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.data()["reused"], is_reused, "{user}");
        if is_reused {
            assert_eq!(event.data()["sessionId"], "session-old");
            assert_eq!(end_ms(&event), end - hour_ms + 600_000);
        }
        env.delete_redis_values().await;
    }
}

#[tokio::test]
async fn link_that_is_handed_out_opens_although_sessions_end_before_tokens() {
    join_all(["token", "deeplink"].map(|flow| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options {
            api_key: API_KEY.to_owned(),
            session_lifetime: Some(Duration::from_secs(4)),
            ..Options::default()
        };
        let sandbox = Sandbox::start(listener, options).unwrap();
        let mut env = TestEnv::start().await;
        env.set("IDV_URL", &sandbox.url()).set("IDV_FLOW", flow).set("IDV_TOKEN_TTL", "1h");
        env.set("IDV_SESSION_TTL", "4s").set("LINK_MIN_LIFE", "1s");
        let _worker = env.start_worker().await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        for n in 0.. {
            env.publish_request(&format!("r-{n}"), "ann").await;
            let data = env.rabbitmq.next_event().await.data();
            let page = http.get(data["mobileUrl"].as_str().unwrap()).send().await.unwrap();
            assert_eq!(page.status(), 200, "{flow}: link {n} of a dead session");
            if sandbox.stats().sessions_made == 2 {
                break;
            }
        }
    }))
    .await;
}
