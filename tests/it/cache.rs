//! What Redis holds, and how many round trips a request waits for.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{
    Answer, Flow, Latch, Proxy, TestEnv, log_text,
    platform::{Call, hold_calls, success},
    redis::{RedisEntry, commands},
    wait_until,
};

const HOUR: i64 = 3_600_000;
const MIN_LIFE: i64 = 600_000;

/// How many commands were sent on behalf of requests: all but the pings of idle connections, the extensions of
/// leases, which a timer sends, and the writing of index entries, which no event waits for.
fn commands_for_requests(proxy: &Proxy) -> usize {
    let sent = commands(&proxy.take_sent());
    let is_in_background = |command: &&Vec<Vec<u8>>| match command[0].as_slice() {
        b"PING" => true,
        // These scripts have one key.
        b"EVALSHA" => command[2] == b"1",
        _ => false,
    };
    sent.iter().filter(|command| !is_in_background(command)).count()
}

#[tokio::test]
async fn keys_name_no_user_and_links_expire_before_their_token() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann-must-not-leak").await;
    let event = env.rabbitmq.next_event().await;

    let [RedisEntry { key, value, ttl_ms }] = &env.redis_entries().await[..] else {
        panic!("not one key")
    };
    let (prefix, rest) = key.split_once(':').unwrap();
    assert_eq!(prefix, env.name);
    let (hash, what) = rest.strip_prefix('{').unwrap().split_once("}:").unwrap();
    assert!(!hash.is_empty() && !hash.contains(['{', '}', ':']), "{key}");
    assert_eq!(what, "link");
    assert!(!key.contains("ann"));
    let value = String::from_utf8_lossy(value);
    assert!(value.contains("t0ken") && !value.contains("ann-must"), "{value}");
    assert!((HOUR - MIN_LIFE - 30_000..=HOUR - MIN_LIFE).contains(ttl_ms), "{ttl_ms}");

    let data = event.data();
    let expires_at = OffsetDateTime::parse(data["expiresAt"].as_str().unwrap(), &Rfc3339).unwrap();
    let left_ms = (expires_at - OffsetDateTime::now_utc()).whole_milliseconds();
    assert!((i128::from(HOUR) - 30_000..=i128::from(HOUR)).contains(&left_ms), "{left_ms}");
}

#[tokio::test]
async fn link_about_to_expire_is_not_reused() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TOKEN_TTL", "3s").set("LINK_MIN_LIFE", "2s");
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    // The link expires after a second, two seconds before its token.
    wait_until("the link is gone", async || env.redis_entries().await.is_empty()).await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn values_are_sealed_and_seal_keys_can_be_rotated() {
    let key = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
    let mut env = TestEnv::start().await;
    env.set("CACHE_KEY", &key(1));
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let first = env.rabbitmq.next_event().await;
    let [RedisEntry { key: link, value, .. }] = &env.redis_entries().await[..] else {
        panic!("not one key")
    };
    for secret in [&b"t0ken"[..], b"session-0", b"ann"] {
        assert!(!value.windows(secret.len()).any(|window| window == secret));
    }
    worker.stop().await;

    // A new key seals from now on; values sealed with the old one can still be read.
    env.set("CACHE_KEY", &format!("{},{}", key(2), key(1)));
    let worker = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["url"], first.data()["url"]);
    worker.stop().await;

    // Without the old key the link cannot be read, and the worker makes another.
    env.set("CACHE_KEY", &key(2));
    let _worker = env.start_worker().await;
    env.publish_request("r-3", "ann").await;
    let third = env.rabbitmq.next_event().await;
    assert_eq!(third.data()["reused"], false);

    // A value copied from another user's key is ignored.
    env.publish_request("r-4", "bob").await;
    env.rabbitmq.next_event().await;
    let bobs = env.redis_entries().await.into_iter().find(|entry| &entry.key != link).unwrap();
    env.set_redis_value(link, &bobs.value).await;
    env.publish_request("r-5", "ann").await;
    let data = env.rabbitmq.next_event().await.data();
    assert_eq!(data["reused"], false);
    assert_eq!(data["userId"], "ann");
}

#[tokio::test]
async fn invalid_value_in_redis_counts_as_absent() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let RedisEntry { key: link, value: stored, .. } = env.redis_entries().await.remove(0);
    let token = link.replace("}:link", "}:token");
    let stamp = &stored[..33];
    let expires_never = [stamp, br#"{"t":"t","e":18446744073709551615,"s":"s"}"#].concat();
    let expires_late = [stamp, br#"{"t":"t","e":1844674407370955,"s":"s"}"#].concat();
    let no_session = [stamp, br#"{"t":"t","e":1844674407}"#].concat();
    // Valid but for a token longer than any platform issues.
    let expires_soon = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() + 3_600_000;
    let long = format!(r#"{{"t":"{}","e":{expires_soon},"s":"s"}}"#, "t".repeat(600_000));
    let too_long = [stamp, long.as_bytes()].concat();
    let invalid = [
        b"".as_slice(),
        b"|",
        b"{}",
        b"\xff\x00",
        b"\xff\xfe|\x00x",
        b"|{\"t\":7}",
        &expires_never,
        &expires_late,
        &no_session,
        &too_long,
        long.as_bytes(),
    ];
    for (number, value) in invalid.into_iter().enumerate() {
        for key in [&link, &token] {
            env.set_redis_value(key, value).await;
        }
        env.publish_request(&format!("invalid-{number}"), "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{number}");
        assert_eq!(event.data()["reused"], false, "{number}");
        // The link stored instead is valid.
        env.publish_request(&format!("again-{number}"), "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true, "{number}");
    }
    assert_eq!(worker.metric("handoff_cache_errors_total").await, 0.0);
}

#[tokio::test]
async fn lease_without_an_expiry_does_not_block_requests_indefinitely() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let link = env.redis_entries().await.remove(0).key;
    env.set_redis_value(&link.replace(":link", ":lease"), b"another worker").await;
    env.rabbitmq.publish_request("r-2", json!({ "userId": "ann", "renew": true })).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "r-2");
    assert_eq!(event.data()["reused"], false);
}

/// An environment with Redis behind a proxy, and a platform that holds token and session calls until
/// their latches open.
async fn with_redis_proxy_and_held_calls() -> (TestEnv, Proxy, Latch, Latch) {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let token = Latch::closed();
    let session = Latch::closed();
    env.platform.set_script({
        let token = token.clone();
        let session = session.clone();
        move |call| success(call).held_by(if call.is_token() { &token } else { &session })
    });
    (env, proxy, token, session)
}

#[tokio::test]
async fn new_link_waits_for_two_round_trips_and_reused_link_for_one() {
    let (mut env, proxy, token, session) = with_redis_proxy_and_held_calls().await;
    let _worker = env.start_worker().await;
    proxy.take_sent();

    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    assert_eq!(commands_for_requests(&proxy), 1, "the claim");
    token.open();
    session.open();
    env.rabbitmq.next_event().await;
    assert_eq!(
        commands_for_requests(&proxy),
        2,
        "the token, which no request waits for, and the link"
    );

    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(commands_for_requests(&proxy), 1, "the claim");

    // The same for another user.
    env.publish_request("r-3", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    assert_eq!(
        commands_for_requests(&proxy),
        3,
        "the claim, the token, which no request waits for, and the link"
    );
}

#[tokio::test]
async fn session_call_does_not_wait_for_the_token_to_be_stored() {
    let (mut env, proxy, token, session) = with_redis_proxy_and_held_calls().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    // The session call is made although Redis is silent from here on.
    proxy.set_replies(Flow::Held);
    token.open();
    env.platform.wait_for_calls(2).await;
    // A call that waited for Redis would be made too, once Redis had timed out.
    let timed_out = worker.log_lines(log_text::REDIS_CONNECTION_DISCARDED);
    assert!(timed_out.is_empty(), "{timed_out:?}");
    proxy.set_replies(Flow::Forwarded);
    session.open();
    env.rabbitmq.next_event().await;
}

#[tokio::test]
async fn token_of_a_killed_worker_is_used_by_its_successor() {
    let mut env = TestEnv::start().await;
    let (session, script) = hold_calls(|call| !call.is_token());
    env.platform.set_script(script);
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    wait_until("the token is stored", async || {
        env.redis_entries().await.iter().any(|entry| entry.key.ends_with(":token"))
    })
    .await;
    worker.kill().await;
    session.open();

    let _successor = env.start_worker().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "r-1");
    assert_eq!(env.platform.token_calls().len(), 1);
    let sessions = env.platform.session_calls();
    assert_eq!(sessions.len(), 2);
    // A platform that honours the idempotency key makes one session for both calls.
    assert_eq!(sessions[0].header("idempotency-key"), sessions[1].header("idempotency-key"));
    assert_eq!(sessions[0].header("authorization"), sessions[1].header("authorization"));
}

#[tokio::test]
async fn rejection_releases_the_lease_at_once() {
    let script = |call: &Call| {
        if !call.is_token() && call.nth == 0 { Answer::status(400) } else { success(call) }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    let left: Vec<_> = env.redis_entries().await.into_iter().map(|entry| entry.key).collect();
    assert!(left.iter().all(|key| key.ends_with(":token")), "{left:?}");
    // The token has made no session, so the next request of the same user uses it.
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(env.platform.token_calls().len(), 1);
}
