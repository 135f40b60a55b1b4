//! Workers that are killed: what a redelivered request costs, as ARCHITECTURE.md says.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    Answer, Flow, Latch, Message, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
    wait_until,
};

/// The Redis key for a user, as docs/reference/redis.md names it.
fn redis_key(env: &TestEnv, user: &str, what: &str) -> String {
    let mut named = (user.len() as u64).to_be_bytes().to_vec();
    named.extend_from_slice(format!("{user}default-workflow").as_bytes());
    let hash = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, &named));
    format!("{}:{{{hash}}}:{what}", env.name)
}

async fn keys(env: &TestEnv) -> HashSet<String> {
    env.redis_entries().await.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn four_kills_under_300_requests_lose_none_and_repeat_only_unfinished_calls() {
    // Slow enough that some calls are unfinished at any time.
    let slow = |call: &Call| success(call).after(Duration::from_millis(20));
    let mut env = TestEnv::builder().platform(slow).start().await;
    let mut worker = env.start_worker().await;
    env.publish_requests(0..300).await;
    let mut received = Vec::new();
    // By user: kills after the session call began and before its link was stored, and how many of
    // them came before the token was stored.
    let mut repeats: HashMap<String, (usize, usize)> = HashMap::new();
    for _ in 0..4 {
        received.extend(env.rabbitmq.next_events(50).await);
        worker.kill().await;
        let keys = keys(&env).await;
        let calls = env.platform.session_calls();
        for n in 0..300 {
            let user = format!("user-{n}");
            let has = |what| keys.contains(&redis_key(&env, &user, what));
            if calls.iter().any(|call| call.user_is(&user)) && !has("link") {
                let (calls, tokens) = repeats.entry(user.clone()).or_default();
                *calls += 1;
                *tokens += usize::from(!has("token"));
            }
        }
        worker = env.start_worker().await;
    }
    let mut ids: HashSet<String> = HashSet::new();
    loop {
        ids.extend(received.drain(..).map(|event| {
            assert_eq!(event.routing_key, "handoff.ready");
            event.data()["requestId"].to_string()
        }));
        if ids.len() == 300 {
            break;
        }
        received.push(env.rabbitmq.next_event().await);
    }
    worker.stop().await;
    for queue in [&env.rabbitmq.queue, &env.dead_queue()] {
        assert_eq!(env.rabbitmq.depth(queue).await, 0, "{queue}");
    }

    let calls = env.platform.session_calls();
    for n in 0..300 {
        let user = format!("user-{n}");
        let calls: Vec<_> = calls.iter().filter(|call| call.user_is(&user)).collect();
        let (repeated, tokens) = repeats.get(&user).copied().unwrap_or_default();
        assert!((1..=1 + repeated).contains(&calls.len()), "{user}: {repeated}, {calls:?}");
        // A platform that honours the idempotency key makes even fewer sessions.
        let keys: HashSet<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
        assert!(keys.len() <= 1 + tokens, "{user}: {tokens}, {calls:?}");
    }
}

#[tokio::test]
async fn unsettled_delivery_is_redelivered_although_later_ones_were_acked() {
    let first = Latch::closed();
    let never = Latch::closed();
    let script = {
        let first = first.clone();
        move |call: &Call| {
            if call.is_token() {
                success(call)
            } else if (0..20).any(|n| n != 10 && call.user_is(&format!("user-{n}"))) {
                success(call).held_by(&first)
            } else {
                success(call).held_by(&never)
            }
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "20");
    let worker = env.start_worker().await;
    env.publish_requests(0..20).await;
    env.platform.wait_for_calls(40).await;
    // Finishes all but the eleventh at the same moment.
    first.open();
    env.rabbitmq.next_events(19).await;
    env.publish_requests(20..39).await;
    // The prefetch is 20, so RabbitMQ delivers these 19 only once the first 19 are acked.
    env.platform.wait_for_calls(40 + 38).await;
    worker.kill().await;
    env.rabbitmq.wait_for_depth(20).await;

    env.platform.set_script(success);
    let successor = env.start_worker().await;
    let again = env.rabbitmq.next_events(20).await;
    let again: HashSet<_> = again.iter().map(|event| event.data()["userId"].to_string()).collect();
    let unsettled = (20..39).chain([10]).map(|n| format!("\"user-{n}\"")).collect();
    assert_eq!(again, unsettled);
    successor.stop().await;
    env.rabbitmq.wait_for_depth(0).await;
}

/// The trace of a user's calls: a token call names no user, so each user has a trace.
fn trace_of(user: &str) -> String {
    format!("00-{:0>32}-00f067aa0ba902b7-01", hex(user))
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

async fn publish_traced(env: &TestEnv, user: &str) {
    let properties = BasicProperties::default()
        .with_message_id(format!("r-{user}").into())
        .with_headers(field_table(&[("traceparent", long_string(&trace_of(user)))]));
    env.rabbitmq.publish(json!({ "userId": user }).to_string(), properties).await;
}

/// How many token and session calls were made for a user.
fn calls_for(env: &TestEnv, user: &str) -> (usize, usize) {
    let calls = env.platform.calls();
    let calls: Vec<_> =
        calls.iter().filter(|call| call.header("traceparent") == trace_of(user)).collect();
    let tokens = calls.iter().filter(|call| call.is_token()).count();
    (tokens, calls.len() - tokens)
}

#[tokio::test]
async fn kill_at_each_step_costs_the_documented_calls() {
    let mut env = TestEnv::start().await;
    let to_platform = env.proxy("IDV_URL").await;
    let to_rabbitmq = env.proxy("AMQP_URL").await;
    let never = Latch::closed();
    let token = Latch::closed();
    env.platform.set_script({
        let token = token.clone();
        move |call| {
            let trace = call.header("traceparent");
            let is_for = |user| trace == trace_of(user);
            if call.is_token() && is_for("token") || !call.is_token() && is_for("session") {
                success(call).held_by(&never)
            } else if call.is_token() && is_for("between") {
                success(call).held_by(&token)
            } else {
                success(call)
            }
        }
    });
    let worker = env.start_worker().await;
    publish_traced(&env, "token").await;
    publish_traced(&env, "session").await;
    env.platform.wait_for_calls(3).await;
    // From here nothing the worker sends reaches RabbitMQ; the other direction still works.
    to_rabbitmq.set_requests(Flow::Held);
    publish_traced(&env, "stored").await;
    wait_until("the link is stored", async || {
        keys(&env).await.contains(&redis_key(&env, "stored", "link"))
    })
    .await;
    publish_traced(&env, "between").await;
    env.platform.wait_for_calls(6).await;
    // The session call does not reach the platform either.
    to_platform.set_requests(Flow::Held);
    token.open();
    wait_until("the tokens are stored", async || {
        let keys = keys(&env).await;
        ["between", "session"].iter().all(|user| keys.contains(&redis_key(&env, user, "token")))
    })
    .await;
    worker.kill().await;
    for proxy in [&to_rabbitmq, &to_platform] {
        proxy.close_connections();
        proxy.set_requests(Flow::Forwarded);
    }
    env.platform.set_script(success);

    let _successor = env.start_worker().await;
    for event in env.rabbitmq.next_events(4).await {
        assert_eq!(event.routing_key, "handoff.ready");
        let data = event.data();
        assert_eq!(data["reused"], data["userId"] == "stored", "{data}");
    }
    assert_eq!(calls_for(&env, "token"), (2, 1), "one token was wasted");
    assert_eq!(calls_for(&env, "between"), (1, 1), "the token was stored");
    assert_eq!(calls_for(&env, "session"), (1, 2), "the call is repeated");
    assert_eq!(calls_for(&env, "stored"), (1, 1), "the link was stored");
    let repeated = env.platform.session_calls();
    let repeated: Vec<_> = repeated.iter().filter(|call| call.user_is("session")).collect();
    for header in ["authorization", "idempotency-key"] {
        assert_eq!(repeated[0].header(header), repeated[1].header(header));
    }
}

#[tokio::test]
async fn event_repeated_after_a_kill_has_the_same_id() {
    for confirmed in [false, true] {
        let mut env = TestEnv::start().await;
        let proxy = env.proxy("AMQP_URL").await;
        let (session, script) = hold_calls(|call| !call.is_token());
        env.platform.set_script(script);
        let worker = env.start_worker().await;
        // The first event opens the channel to publish on.
        publish_traced(&env, "bob").await;
        env.platform.wait_for_calls(2).await;
        session.open();
        env.rabbitmq.next_event().await;
        worker.wait_for_log(log_text::REQUEST_FINISHED).await;

        let (session, script) = hold_calls(|call| !call.is_token());
        env.platform.set_script(script);
        publish_traced(&env, "ann").await;
        env.platform.wait_for_calls(4).await;
        // The event reaches RabbitMQ, its confirm does not reach the worker …
        proxy.set_replies(Flow::Held);
        session.open();
        let first = env.rabbitmq.next_event().await;
        if confirmed {
            // … or the confirm does, and the ack does not reach RabbitMQ.
            proxy.set_requests(Flow::Held);
            proxy.set_replies(Flow::Forwarded);
            worker.wait_for_logs(log_text::REQUEST_FINISHED, 2).await;
        }
        worker.kill().await;
        proxy.close_connections();
        proxy.set_flow(Flow::Forwarded);

        let _successor = env.start_worker().await;
        let second = env.rabbitmq.next_event().await;
        assert_eq!(first.json()["id"], second.json()["id"]);
        assert_eq!(first.data()["url"], second.data()["url"]);
        assert_eq!(first.data()["reused"], false);
        assert_eq!(second.data()["reused"], true);
        assert_eq!(calls_for(&env, "ann"), (1, 1));
    }
}

/// Waits until Redis has the token and the worker has read its reply.
async fn wait_for_stored_token(env: &TestEnv, worker: &Worker) {
    let is_stored = async || keys(env).await.contains(&redis_key(env, "ann", "token"));
    wait_until("the token is stored", is_stored).await;
    // A worker that answers this has read what Redis sent before.
    worker.get("/livez").await;
}

/// A worker stalled in its session call, its successor, and the successor's event.
async fn stall_and_succeed(env: &mut TestEnv) -> (Worker, Worker, Message) {
    // With a concurrency of 1, the second request goes to the second worker.
    env.set("CONCURRENCY", "1").set("IDV_TIMEOUT", "1m");
    let stalled = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    wait_for_stored_token(env, &stalled).await;
    stalled.signal("STOP");
    let successor = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    // Published as soon as the stalled worker's lease has ended.
    let second = env.rabbitmq.next_event().await;
    assert_eq!(second.data()["requestId"], "r-2");
    (stalled, successor, second)
}

#[tokio::test]
async fn worker_stalled_past_its_lease_adopts_its_successors_link() {
    let (answer, script) = hold_calls(|call| !call.is_token() && call.nth == 0);
    let mut env = TestEnv::builder().platform(script).start().await;
    let (stalled, successor, second) = stall_and_succeed(&mut env).await;
    assert_eq!(second.data()["sessionId"], "session-1");
    let values = async |env: &TestEnv| -> Vec<_> {
        env.redis_entries().await.into_iter().map(|entry| (entry.key, entry.value)).collect()
    };
    let link = values(&env).await;

    answer.open();
    stalled.signal("CONT");
    let first = env.rabbitmq.next_event().await;
    assert_eq!(first.data()["requestId"], "r-1");
    assert_eq!(link, values(&env).await);
    env.publish_request("r-3", "ann").await;
    let third = env.rabbitmq.next_event().await;
    for event in [&first, &third] {
        assert_eq!(event.data()["url"], second.data()["url"]);
        assert_eq!(event.data()["reused"], true);
    }
    assert_eq!(env.platform.session_calls().len(), 2);
    successor.stop().await;
}

#[tokio::test]
async fn worker_stalled_past_its_lease_makes_no_further_call() {
    let answer = Latch::closed();
    let script = {
        let answer = answer.clone();
        move |call: &Call| {
            if !call.is_token() && call.nth == 0 {
                Answer::status(503).held_by(&answer)
            } else {
                success(call)
            }
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let (stalled, _successor, second) = stall_and_succeed(&mut env).await;

    answer.open();
    stalled.signal("CONT");
    let first = env.rabbitmq.next_event().await;
    assert_eq!(first.data()["url"], second.data()["url"]);
    assert_eq!(first.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn poison_message_ends_in_the_dead_queue_and_others_are_served() {
    let never = Latch::closed();
    let script = move |call: &Call| {
        if call.header("traceparent") == trace_of("poison") {
            success(call).held_by(&never)
        } else {
            // Slow enough that no other request is served between two kills.
            success(call).after(Duration::from_millis(150))
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    // The queue must exist, with its delivery limit, before requests are published.
    env.declare_topology().await;
    for user in ["ann", "bob", "poison", "cat", "dan"] {
        publish_traced(&env, user).await;
    }
    let dead = env.dead_queue();
    let mut lives = 0;
    let survivor = loop {
        // Another key prefix, so that the killed worker's lease delays nothing.
        let prefix = format!("{}:{lives}", env.name);
        env.set("KEY_PREFIX", &prefix);
        let worker = Worker::start(&env.settings);
        lives += 1;
        tokio::select! {
            () = wait_until("it is taken", async || calls_for(&env, "poison").0 == lives) => {}
            () = wait_until("it is dead", async || env.rabbitmq.depth(&dead).await > 0) => break worker,
        }
        worker.kill().await;
    };
    // The limit allows 21 deliveries; older brokers also count a delivery that was returned.
    assert!((15..=22).contains(&lives), "{lives}");
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.json()["userId"], "poison");
    assert_eq!(letter.text_header("x-first-death-reason"), "delivery_limit");
    assert!(letter.header("x-handoff-reason").is_none());
    let events = env.rabbitmq.next_events(4).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    // The survivor may have started just now.
    survivor.wait_for_log(log_text::CONSUMING).await;
    survivor.stop().await;
    assert_eq!(env.rabbitmq.depth(&dead).await, 0, "no other request");
}
