//! What Redis holds, what waiting for it costs, and how to do without.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{
    Answer, Flow, Latch, Proxy, TestEnv,
    platform::{Call, hold_calls, success},
    redis::{self, RedisEntry},
};

const HOUR: i64 = 3_600_000;
const MIN_LIFE: i64 = 600_000;

/// The commands in what a client sent, as Redis' protocol has them: `*<words>\r\n$…`.
fn commands(sent: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut rest = sent;
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let words = number(&mut rest, b'*');
        let word = |_| {
            let length = number(&mut rest, b'$');
            let (word, after) = rest.split_at(length);
            rest = &after[2..];
            word.to_vec()
        };
        commands.push((0..words).map(word).collect());
    }
    commands
}

fn number(rest: &mut &[u8], kind: u8) -> usize {
    let end = rest.iter().position(|byte| *byte == b'\r').unwrap();
    let (line, after) = rest.split_at(end);
    assert_eq!(line[0], kind);
    *rest = &after[2..];
    std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
}

/// The commands that requests cost: all but the questions whether an idle connection lives, and the
/// extensions of a lease, which come by the clock.
fn requests_cost(proxy: &Proxy) -> usize {
    let sent = commands(&proxy.take_sent());
    let by_the_clock = |command: &&Vec<Vec<u8>>| match command[0].as_slice() {
        b"PING" => true,
        // One key, and that is the lease.
        b"EVALSHA" => command[2] == b"1" && command[3].ends_with(b":lease"),
        _ => false,
    };
    sent.iter().filter(|command| !by_the_clock(command)).count()
}

#[tokio::test]
async fn keys_hold_no_user_and_links_end_before_their_token() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann-whom-nobody-may-know").await;
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
    assert!(value.contains("t0ken") && !value.contains("ann-whom"), "{value}");
    assert!((HOUR - MIN_LIFE - 30_000..=HOUR - MIN_LIFE).contains(ttl_ms), "{ttl_ms}");

    let ends = event.data()["expiresAt"].as_str().unwrap().to_owned();
    let ends =
        time::OffsetDateTime::parse(&ends, &time::format_description::well_known::Rfc3339).unwrap();
    let left = (ends - time::OffsetDateTime::now_utc()).whole_milliseconds();
    assert!((i128::from(HOUR) - 30_000..=i128::from(HOUR)).contains(&left), "{left}");
}

#[tokio::test]
async fn a_link_that_is_about_to_end_is_not_handed_out_again() {
    let mut env = TestEnv::start().await;
    env.set("IDV_TOKEN_TTL", "3s").set("LINK_MIN_LIFE", "2s");
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    // A second later, though its token lives on.
    crate::support::wait_until("the link is gone", async || env.redis_entries().await.is_empty())
        .await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn values_are_sealed_and_keys_rotate() {
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

    // A new key seals from now on; what the old one sealed still opens.
    env.set("CACHE_KEY", &format!("{},{}", key(2), key(1)));
    let worker = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["url"], first.data()["url"]);
    worker.stop().await;

    // Without the old one it cannot be read, and is made anew.
    env.set("CACHE_KEY", &key(2));
    let _worker = env.start_worker().await;
    env.publish_request("r-3", "ann").await;
    let third = env.rabbitmq.next_event().await;
    assert_eq!(third.data()["reused"], false);

    // A value under another person's name is no value.
    let mut redis = redis::connect(env.setting("REDIS_URL")).await;
    env.publish_request("r-4", "bob").await;
    env.rabbitmq.next_event().await;
    let bobs = env.redis_entries().await.into_iter().find(|entry| &entry.key != link).unwrap();
    redis::cmd("COPY")
        .arg(&bobs.key)
        .arg(link)
        .arg("REPLACE")
        .query_async::<()>(&mut redis)
        .await
        .unwrap();
    env.publish_request("r-5", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!((&event.data()["reused"], &event.data()["userId"]), (&json!(false), &json!("ann")));
}

#[tokio::test]
async fn rubbish_in_redis_counts_as_absent() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let RedisEntry { key: link, value: stored, .. } = env.redis_entries().await.remove(0);
    let token = link.replace("}:link", "}:token");
    let stamp = &stored[..33];
    let ends_never = [stamp, br#"{"t":"t","e":18446744073709551615,"s":"s"}"#].concat();
    let ends_late = [stamp, br#"{"t":"t","e":1844674407370955,"s":"s"}"#].concat();
    let no_session = [stamp, br#"{"t":"t","e":1844674407}"#].concat();
    // All is well with it, but that no honest token is so long.
    let ends_soon = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() + 3_600_000;
    let long = format!(r#"{{"t":"{}","e":{ends_soon},"s":"s"}}"#, "t".repeat(600_000));
    let too_long = [stamp, long.as_bytes()].concat();
    let rubbish = [
        b"".as_slice(),
        b"|",
        b"{}",
        b"\xff\x00",
        b"\xff\xfe|\x00x",
        b"|{\"t\":7}",
        &ends_never,
        &ends_late,
        &no_session,
        &too_long,
        long.as_bytes(),
    ];
    for (number, rubbish) in rubbish.into_iter().enumerate() {
        for key in [&link, &token] {
            env.set_redis_value(key, rubbish).await;
        }
        env.publish_request(&format!("rubbish-{number}"), "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{number}");
        assert_eq!(event.data()["reused"], false, "{number}");
        // And what is stored instead is good.
        env.publish_request(&format!("again-{number}"), "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true, "{number}");
    }
    assert_eq!(worker.metric("handoff_cache_errors_total").await, 0.0);
}

#[tokio::test]
async fn a_lease_that_has_lost_its_end_holds_nobody_up_for_ever() {
    let mut env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    let link = env.redis_entries().await.remove(0).key;
    env.set_redis_value(&link.replace(":link", ":lease"), b"somebody").await;
    env.rabbitmq.publish_request("r-2", json!({ "userId": "ann", "renew": true })).await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(
        (&event.data()["requestId"], &event.data()["reused"]),
        (&json!("r-2"), &json!(false))
    );
}

/// With Redis behind a proxy, and a platform that answers each call as soon as it is told.
async fn watched() -> (TestEnv, Proxy, Latch, Latch) {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let (token, session) = (Latch::closed(), Latch::closed());
    env.platform.set_script({
        let (token, session) = (token.clone(), session.clone());
        move |call| success(call).held_by(if call.is_token() { &token } else { &session })
    });
    (env, proxy, token, session)
}

#[tokio::test]
async fn a_new_link_waits_for_two_round_trips_and_a_reused_one_for_one() {
    let (mut env, proxy, token, session) = watched().await;
    let _worker = env.start_worker().await;
    proxy.take_sent();

    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    assert_eq!(requests_cost(&proxy), 1, "the claim");
    token.open();
    session.open();
    env.rabbitmq.next_event().await;
    assert_eq!(requests_cost(&proxy), 2, "the token, which nobody waits for, and the link");

    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(requests_cost(&proxy), 1, "the claim");

    // Whatever came before.
    env.publish_request("r-3", "bob").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
    assert_eq!(
        requests_cost(&proxy),
        3,
        "the claim, the token, which nobody waits for, and the link"
    );
}

#[tokio::test]
async fn nobody_waits_for_the_token_to_be_stored() {
    let (mut env, proxy, token, session) = watched().await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    // From here Redis is silent; the session call is made all the same.
    proxy.set_replies(Flow::Held);
    token.open();
    env.platform.wait_for_calls(2).await;
    proxy.set_replies(Flow::Forwarded);
    session.open();
    env.rabbitmq.next_event().await;
}

#[tokio::test]
async fn the_token_of_a_worker_that_died_serves_its_successor() {
    let mut env = TestEnv::start().await;
    let (session, script) = hold_calls(|call| !call.is_token());
    env.platform.set_script(script);
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    crate::support::wait_until("the token is stored", async || {
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
    // A platform that heeds the key makes one session of both.
    assert_eq!(sessions[0].header("idempotency-key"), sessions[1].header("idempotency-key"));
    assert_eq!(sessions[0].header("authorization"), sessions[1].header("authorization"));
}

#[tokio::test]
async fn a_rejection_frees_the_lease_at_once() {
    let mut env = TestEnv::builder()
        .platform(|call: &Call| match (call.is_token(), call.nth) {
            (false, 0) => Answer::status(400),
            _ => success(call),
        })
        .start()
        .await;
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    let left: Vec<_> = env.redis_entries().await.into_iter().map(|entry| entry.key).collect();
    assert!(left.iter().all(|key| key.ends_with(":token")), "{left:?}");
    // The token it left has made no session: it serves the next request of the same person.
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    assert_eq!(env.platform.token_calls().len(), 1);
}
