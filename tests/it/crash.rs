//! Workers that are killed: what their requests find when they come again, as ARCHITECTURE.md has it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    Answer, Flow, Latch, Message, Platform, Proxy, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    rabbitmq::{field_table, long_string},
    wait_until,
};

/// What Redis knows of a person, by the names in the reference.
fn key(env: &TestEnv, user: &str, what: &str) -> String {
    let mut named = (user.len() as u64).to_be_bytes().to_vec();
    named.extend_from_slice(format!("{user}default-workflow").as_bytes());
    let hash = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, &named));
    format!("{}:{{{hash}}}:{what}", env.name)
}

async fn keys(env: &TestEnv) -> HashSet<String> {
    env.redis_entries().await.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn four_kills_in_three_hundred_requests_lose_none_and_double_only_calls_under_way() {
    let platform = Platform::scripted(|call: &Call| {
        // Slow enough for some to be under way at any time.
        success(call).after(Duration::from_millis(20))
    });
    let mut env = TestEnv::builder().platform(platform.await).start().await;
    let mut worker = env.start_worker().await;
    for n in 0..300 {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
    let mut heard = Vec::new();
    // By user: the kills during a session call or before Redis had its link, and those of them that
    // came before Redis had the token.
    let mut doubled: HashMap<String, (usize, usize)> = HashMap::new();
    for _ in 0..4 {
        heard.extend(env.rabbitmq.next_events(50).await);
        worker.kill().await;
        let keys = keys(&env).await;
        let calls = env.platform.session_calls();
        for n in 0..300 {
            let user = format!("user-{n}");
            let has = |what| keys.contains(&key(&env, &user, what));
            if calls.iter().any(|call| call.user_is(&user)) && !has("link") {
                let (calls, tokens) = doubled.entry(user.clone()).or_default();
                *calls += 1;
                *tokens += usize::from(!has("token"));
            }
        }
        worker = env.start_worker().await;
    }
    let mut ids: HashSet<String> = HashSet::new();
    loop {
        ids.extend(heard.drain(..).map(|event| {
            assert_eq!(event.routing_key, "handoff.ready");
            event.data()["requestId"].to_string()
        }));
        if ids.len() == 300 {
            break;
        }
        heard.push(env.rabbitmq.next_event().await);
    }
    worker.stop().await;
    for queue in [&env.rabbitmq.queue, &env.dead_queue()] {
        assert_eq!(env.rabbitmq.depth(queue).await, 0, "{queue}");
    }

    let calls = env.platform.session_calls();
    for n in 0..300 {
        let user = format!("user-{n}");
        let calls: Vec<_> = calls.iter().filter(|call| call.user_is(&user)).collect();
        let (doubled, tokens) = doubled.get(&user).copied().unwrap_or_default();
        assert!((1..=1 + doubled).contains(&calls.len()), "{user}: {doubled}, {calls:?}");
        // A platform that heeds the key makes even fewer.
        let keys: HashSet<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
        assert!(keys.len() <= 1 + tokens, "{user}: {tokens}, {calls:?}");
    }
}

#[tokio::test]
async fn what_is_at_work_comes_again_though_what_came_after_it_is_done() {
    let (first, never) = (Latch::closed(), Latch::closed());
    let platform = Platform::scripted({
        let (first, never) = (first.clone(), never.clone());
        move |call| match call.is_token() {
            true => success(call),
            false if (0..20).any(|n| n != 10 && call.user_is(&format!("user-{n}"))) => {
                success(call).held_by(&first)
            }
            false => success(call).held_by(&never),
        }
    });
    let mut env = TestEnv::builder().platform(platform.await).start().await;
    env.set("CONCURRENCY", "20");
    let worker = env.start_worker().await;
    env.publish_requests(0..20).await;
    env.platform.wait_for_calls(40).await;
    // All but one in their midst, at the same moment.
    first.open();
    env.rabbitmq.next_events(19).await;
    env.publish_requests(20..39).await;
    // RabbitMQ hands out no more than 20, so it has heard of the 19 that are done.
    env.platform.wait_for_calls(40 + 38).await;
    worker.kill().await;
    env.rabbitmq.wait_for_depth(20).await;

    env.platform.set_script(success);
    let successor = env.start_worker().await;
    let again = env.rabbitmq.next_events(20).await;
    let again: HashSet<_> = again.iter().map(|event| event.data()["userId"].to_string()).collect();
    let at_work = (20..39).chain([10]).map(|n| format!("\"user-{n}\"")).collect();
    assert_eq!(again, at_work);
    successor.stop().await;
    env.rabbitmq.wait_for_depth(0).await;
}

/// Which user's call this is, a token call included: users have their own trace.
fn trace_of(user: &str) -> String {
    format!("00-{:0>32}-00f067aa0ba902b7-01", hex(user))
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

async fn ask(env: &TestEnv, user: &str) {
    let properties = BasicProperties::default()
        .with_message_id(format!("r-{user}").into())
        .with_headers(field_table(&[("traceparent", long_string(&trace_of(user)))]));
    env.rabbitmq.publish(json!({ "userId": user }).to_string(), properties).await;
}

/// How often a user's token and session were asked for.
fn calls_for(env: &TestEnv, user: &str) -> (usize, usize) {
    let calls = env.platform.calls();
    let calls: Vec<_> =
        calls.iter().filter(|call| call.header("traceparent") == trace_of(user)).collect();
    let tokens = calls.iter().filter(|call| call.is_token()).count();
    (tokens, calls.len() - tokens)
}

#[tokio::test]
async fn a_kill_costs_at_each_step_what_is_documented() {
    let mut env = TestEnv::start().await;
    let to_platform = Proxy::to(&env.platform.url).await;
    let to_rabbit = Proxy::to(env.setting("AMQP_URL")).await;
    let (idv, amqp) = (to_platform.url(&env.platform.url), to_rabbit.url(env.setting("AMQP_URL")));
    env.set("IDV_URL", &idv).set("AMQP_URL", &amqp);
    let (never, token) = (Latch::closed(), Latch::closed());
    env.platform.set_script({
        let (never, token) = (never.clone(), token.clone());
        move |call| {
            let whose = call.header("traceparent");
            let is = |user| whose == trace_of(user);
            match call.is_token() {
                true if is("token") => success(call).held_by(&never),
                true if is("between") => success(call).held_by(&token),
                false if is("session") => success(call).held_by(&never),
                _ => success(call),
            }
        }
    });
    let worker = env.start_worker().await;
    ask(&env, "token").await;
    ask(&env, "session").await;
    env.platform.wait_for_calls(3).await;
    // From here RabbitMQ does not hear the worker any more, but the worker hears RabbitMQ.
    to_rabbit.set_requests(Flow::Held);
    ask(&env, "stored").await;
    wait_until("the link is stored", async || {
        keys(&env).await.contains(&key(&env, "stored", "link"))
    })
    .await;
    ask(&env, "between").await;
    env.platform.wait_for_calls(6).await;
    // The platform does not hear of the session call either.
    to_platform.set_requests(Flow::Held);
    token.open();
    wait_until("the tokens are stored", async || {
        let keys = keys(&env).await;
        ["between", "session"].iter().all(|user| keys.contains(&key(&env, user, "token")))
    })
    .await;
    worker.kill().await;
    for proxy in [&to_rabbit, &to_platform] {
        proxy.close_connections();
        proxy.set_requests(Flow::Forwarded);
    }
    env.platform.set_script(success);

    let _successor = env.start_worker().await;
    for event in env.rabbitmq.next_events(4).await {
        let (user, reused) = (&event.data()["userId"], &event.data()["reused"]);
        assert_eq!(event.routing_key, "handoff.ready");
        assert_eq!(*reused, *user == "stored", "{user}");
    }
    assert_eq!(calls_for(&env, "token"), (2, 1), "one token was for nothing");
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
async fn a_kill_after_the_event_repeats_it_under_the_same_id() {
    for confirmed in [false, true] {
        let mut env = TestEnv::start().await;
        let proxy = env.proxy("AMQP_URL").await;
        let (session, script) = hold_calls(|call| !call.is_token());
        env.platform.set_script(script);
        let worker = env.start_worker().await;
        // One before, so that a channel to publish on is there.
        ask(&env, "bob").await;
        env.platform.wait_for_calls(2).await;
        session.open();
        env.rabbitmq.next_event().await;
        worker.wait_for_log(log_text::REQUEST_FINISHED).await;

        let (session, script) = hold_calls(|call| !call.is_token());
        env.platform.set_script(script);
        ask(&env, "ann").await;
        env.platform.wait_for_calls(4).await;
        // The event goes out, its confirm does not come back …
        proxy.set_replies(Flow::Held);
        session.open();
        let first = env.rabbitmq.next_event().await;
        if confirmed {
            // … or it does, and it is the ack that goes nowhere.
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
        assert_eq!(
            (&first.data()["reused"], &second.data()["reused"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(calls_for(&env, "ann"), (1, 1));
    }
}

/// Waits until nothing is on its way from Redis any more: it has the token, and the worker has read so.
async fn token_is_stored(env: &TestEnv, worker: &Worker) {
    let stored = async || keys(env).await.contains(&key(env, "ann", "token"));
    wait_until("the token is stored", stored).await;
    worker.get("/livez").await;
}

/// A worker that is stalled in its session call, the one that takes over, and what that one told.
async fn stalled_and_succeeded(env: &mut TestEnv) -> (Worker, Worker, Message) {
    // With one place each, what comes second goes to the second worker.
    env.set("CONCURRENCY", "1").set("IDV_TIMEOUT", "1m");
    let stalled = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    token_is_stored(env, &stalled).await;
    stalled.signal("STOP");
    let successor = env.start_worker().await;
    env.publish_request("r-2", "ann").await;
    // As soon as the lease has ended.
    let second = env.rabbitmq.next_event().await;
    assert_eq!(second.data()["requestId"], "r-2");
    (stalled, successor, second)
}

#[tokio::test]
async fn a_worker_that_was_stalled_past_its_lease_takes_its_successors_link() {
    let (answer, script) = hold_calls(|call| !call.is_token() && call.nth == 0);
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let (stalled, successor, second) = stalled_and_succeeded(&mut env).await;
    assert_eq!(second.data()["sessionId"], "session-1");
    let link = env.redis_entries().await;

    answer.open();
    stalled.signal("CONT");
    let first = env.rabbitmq.next_event().await;
    assert_eq!(first.data()["requestId"], "r-1");
    let unchanged: Vec<_> =
        env.redis_entries().await.into_iter().map(|entry| (entry.key, entry.value)).collect();
    let link: Vec<_> = link.into_iter().map(|entry| (entry.key, entry.value)).collect();
    assert_eq!(link, unchanged);
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
async fn a_worker_that_was_stalled_past_its_lease_begins_nothing_more() {
    let answer = Latch::closed();
    let script = {
        let answer = answer.clone();
        move |call: &Call| match (call.is_token(), call.nth) {
            (false, 0) => Answer::status(503).held_by(&answer),
            _ => success(call),
        }
    };
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let (stalled, _successor, second) = stalled_and_succeeded(&mut env).await;

    answer.open();
    stalled.signal("CONT");
    let first = env.rabbitmq.next_event().await;
    assert_eq!(first.data()["url"], second.data()["url"]);
    assert_eq!(first.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 2);
}

#[tokio::test]
async fn a_request_that_kills_every_worker_ends_in_the_dead_queue_and_takes_nobody_along() {
    let never = Latch::closed();
    let platform = Platform::scripted(move |call: &Call| {
        match call.header("traceparent") == trace_of("poison") {
            true => success(call).held_by(&never),
            // Nobody is served while it kills one worker after another.
            false => success(call).after(Duration::from_millis(150)),
        }
    });
    let mut env = TestEnv::builder().platform(platform.await).start().await;
    // For the queue to be there, and its limit.
    env.declare_topology().await;
    for user in ["ann", "bob", "poison", "cat", "dan"] {
        ask(&env, user).await;
    }
    let dead = env.dead_queue();
    let mut lives = 0;
    let survivor = loop {
        // A cache of its own, so that no lease of the one before holds it up.
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
    // Taken 21 times at most; older brokers count it as well when it is handed back.
    assert!((15..=22).contains(&lives), "{lives}");
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.json()["userId"], "poison");
    assert_eq!(letter.text_header("x-first-death-reason"), "delivery_limit");
    assert!(letter.header("x-handoff-reason").is_none());
    let events = env.rabbitmq.next_events(4).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    // It may have been started a moment ago.
    survivor.wait_for_log(log_text::CONSUMING).await;
    survivor.stop().await;
    assert_eq!(env.rabbitmq.depth(&dead).await, 0, "nobody else");
}
