//! The end of a verification: its link is not handed out again.

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};

use crate::support::{
    Answer, Flow, Latch, Message, Node, TestEnv, log_text,
    platform::success,
    rabbitmq::{field_table, long_string},
    redis, wait_until,
    worker::run,
};

async fn end(env: &TestEnv, data: Value) {
    env.rabbitmq.publish_ending(data, BasicProperties::default()).await;
}

async fn request(env: &mut TestEnv, id: &str, user: &str) -> Value {
    env.publish_request(id, user).await;
    env.rabbitmq.next_event().await.data()
}

#[tokio::test]
async fn link_is_forgotten_by_user_by_session_and_by_both() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    for (number, what) in ["user", "session", "both"].into_iter().enumerate() {
        let first = request(&mut env, &format!("r-{number}-1"), "ann").await;
        let again = request(&mut env, &format!("r-{number}-2"), "ann").await;
        assert_eq!(again["sessionId"], first["sessionId"]);
        let session = &first["sessionId"];
        let workflow = &first["workflowId"];
        end(
            &env,
            match what {
                "user" => json!({ "userId": "ann", "workflowId": workflow }),
                "session" => json!({ "sessionId": session }),
                _ => json!({ "userId": "ann", "workflowId": workflow, "sessionId": session }),
            },
        )
        .await;
        worker.wait_for_endings("forgotten", number + 1).await;
        let next = request(&mut env, &format!("r-{number}-3"), "ann").await;
        assert_eq!(next["reused"], false, "{what}");
        assert_ne!(next["sessionId"], first["sessionId"], "{what}");
        // Ended once more: the new link has nothing to do with it.
        end(&env, json!({ "sessionId": session })).await;
        worker.wait_for_endings("unknown", number + 1).await;
        let kept = request(&mut env, &format!("r-{number}-4"), "ann").await;
        assert_eq!(kept["sessionId"], next["sessionId"], "{what}");
        // The next round starts without a link.
        env.delete_redis_values().await;
    }
}

#[tokio::test]
async fn session_of_another_user_or_a_later_one_is_kept() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let anns = request(&mut env, "r-1", "ann").await;
    end(&env, json!({ "userId": "bob", "sessionId": anns["sessionId"] })).await;
    worker.wait_for_endings("unknown", 1).await;
    // It ended an hour before the link was made.
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let properties = BasicProperties::default().with_timestamp(now - 3_600);
    env.rabbitmq.publish_ending(json!({ "userId": "ann" }), properties).await;
    worker.wait_for_endings("kept", 1).await;
    assert_eq!(request(&mut env, "r-2", "ann").await["sessionId"], anns["sessionId"]);
}

#[tokio::test]
async fn time_of_an_ending_is_its_timestamp_else_that_of_first_receipt_and_never_in_the_future() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let hour_ago = now - 3_600;
    // As on a copy.
    let received = AMQPValue::LongLongInt(1_000 * hour_ago.cast_signed());
    let copy =
        BasicProperties::default().with_headers(field_table(&[("x-handoff-received", received)]));
    let (mut kept, mut forgotten) = (0, 0);
    for (properties, is_kept) in [
        (copy.clone(), true),
        (copy.clone().with_timestamp(0), true),
        (copy.with_timestamp(now + 60), false),
        (BasicProperties::default().with_timestamp(0), false),
    ] {
        request(&mut env, &format!("r-{kept}-{forgotten}"), "ann").await;
        env.rabbitmq.publish_ending(json!({ "userId": "ann" }), properties).await;
        let (outcome, count) =
            if is_kept { ("kept", &mut kept) } else { ("forgotten", &mut forgotten) };
        *count += 1;
        worker.wait_for_endings(outcome, *count).await;
    }
    let entries = env.redis_entries().await;
    let mark = entries.iter().find(|entry| entry.key.ends_with(":ended")).unwrap();
    let mark = String::from_utf8_lossy(&mark.value);
    let last: u64 = mark.rsplit_once(':').unwrap().1.parse().unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(last <= now, "{last} is in the future");
    worker.stop().await;
}

#[tokio::test]
async fn session_that_is_being_made_is_not_affected() {
    let mut env = TestEnv::start().await;
    let session = Latch::closed();
    env.platform.set_script({
        let session = session.clone();
        move |call| {
            let answer = success(call);
            if call.is_token() { answer } else { answer.held_by(&session) }
        }
    });
    let worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    end(&env, json!({ "userId": "ann" })).await;
    worker.wait_for_endings("unknown", 1).await;
    session.open();
    let made = env.rabbitmq.next_event().await.data();
    let again = request(&mut env, "r-2", "ann").await;
    assert_eq!((&again["reused"], &again["sessionId"]), (&json!(true), &made["sessionId"]));
}

#[tokio::test]
async fn ending_among_requests_is_no_request() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let first = request(&mut env, "r-1", "ann").await;
    worker.wait_for_finished(1).await;
    let event = json!({
        "specversion": "1.0", "id": "e-1", "source": "/app", "type": "verification.ended",
        "data": { "sessionId": first["sessionId"] },
    });
    env.rabbitmq.publish(event.to_string(), BasicProperties::default()).await;
    worker.wait_for_endings("forgotten", 1).await;
    let second = request(&mut env, "r-2", "ann").await;
    assert_eq!(second["reused"], false);
    let typed = BasicProperties::default().with_type("verification.ended".into());
    env.rabbitmq.publish(json!({ "userId": "ann" }).to_string(), typed).await;
    worker.wait_for_endings("forgotten", 2).await;
    assert_eq!(request(&mut env, "r-3", "ann").await["reused"], false);
    assert_eq!(worker.metric("handoff_requests_total{outcome=\"failed\"}").await, 0.0);
}

#[tokio::test]
async fn invalid_ending_is_dead_lettered_without_an_event() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    end(&env, json!({ "workflowId": "w" })).await;
    let letter = env.rabbitmq.take_dead_letter().await;
    assert_eq!(letter.text_header("x-handoff-reason"), "invalid_ending");
    assert_eq!(letter.text_header("x-handoff-queue"), env.ended_queue());
    assert_eq!(worker.metric("handoff_endings_total{outcome=\"invalid\"}").await, 1.0);
    // The next event is that of the request.
    assert_eq!(request(&mut env, "r-1", "ann").await["requestId"], "r-1");
}

#[tokio::test]
async fn dead_letter_of_an_ending_is_replayed_to_the_queue_of_endings() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    env.wait_for_consumer_of_endings().await;
    let first = request(&mut env, "r-1", "ann").await;
    // Dead-lettered by a worker that has no default workflow.
    let letter = Message {
        routing_key: String::new(),
        properties: BasicProperties::default().with_message_id("e-1".into()).with_headers(
            field_table(&[
                ("x-handoff-request-id", long_string("e-1")),
                ("x-handoff-reason", long_string("invalid_ending")),
                ("x-handoff-queue", long_string(&env.ended_queue())),
            ]),
        ),
        body: json!({ "userId": "ann" }).to_string().into_bytes(),
    };
    env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    let arguments = ["dead-letters", "replay", "--reason", "invalid_ending"];
    let output = run(&arguments, &env.only(&["AMQP_URL", "QUEUE"])).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    worker.wait_for_endings("forgotten", 1).await;
    assert_eq!(env.dead_letters().await, 0);
    // In the request queue, it would be a request that gets the link.
    let second = request(&mut env, "r-2", "ann").await;
    assert_eq!((&second["requestId"], &second["reused"]), (&json!("r-2"), &json!(false)));
    assert_ne!(second["sessionId"], first["sessionId"]);
}

#[tokio::test]
async fn endings_are_consumed_while_the_platform_is_paused() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let first = request(&mut env, "r-1", "ann").await;
    worker.wait_for_finished(1).await;
    env.platform.set_script(|_| Answer::status(401));
    env.publish_request("r-2", "bob").await;
    wait_until("the platform is paused", async || {
        worker.metric("handoff_platform_paused").await == 1.0
    })
    .await;
    end(&env, json!({ "sessionId": first["sessionId"] })).await;
    worker.wait_for_endings("forgotten", 1).await;
}

#[tokio::test]
async fn endings_wait_in_their_queue_while_redis_is_unavailable() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let worker = env.start_worker().await;
    let first = request(&mut env, "r-1", "ann").await;
    worker.wait_for_finished(1).await;
    proxy.set_flow(Flow::Dropped);
    // The first one finds out that Redis does not answer.
    for _ in 0..3 {
        end(&env, json!({ "sessionId": first["sessionId"] })).await;
    }
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    let queue = env.ended_queue();
    wait_until("all endings are in their queue", async || env.rabbitmq.depth(&queue).await == 3)
        .await;
    assert_eq!(worker.metric("handoff_endings_total{outcome=\"forgotten\"}").await, 0.0);
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_endings("forgotten", 1).await;
    worker.wait_for_endings("unknown", 2).await;
    assert_eq!(request(&mut env, "r-2", "ann").await["reused"], false);
}

/// Requests succeed all the while, so Redis is available again right after each refusal.
#[tokio::test]
async fn ending_that_redis_refuses_is_offered_again_about_once_a_second() {
    const COPIES: &str = "handoff_publishes_total{kind=\"postponed\",outcome=\"confirmed\"}";
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let first = request(&mut env, "r-1", "ann").await;
    let mut admin = redis::connect(&node.url).await;
    redis::run(&mut admin, "ACL SETUSER default -getrange").await;
    let ending = json!({ "userId": "ann", "workflowId": first["workflowId"] });
    end(&env, ending.clone()).await;
    let is_ending = BasicProperties::default().with_type("verification.ended".into());
    env.rabbitmq.publish(ending.to_string(), is_ending).await;
    let started = Instant::now();
    let mut number = 2;
    while started.elapsed() < Duration::from_secs(4) {
        request(&mut env, &format!("r-{number}"), "ann").await;
        number += 1;
    }
    let copies = worker.metric(COPIES).await;
    assert!((2.0..=14.0).contains(&copies), "{copies} copies, {number} requests");
    redis::run(&mut admin, "ACL SETUSER default +getrange").await;
    worker.wait_for_endings("forgotten", 1).await;
    worker.wait_for_endings("unknown", 1).await;
}

/// In each round, the sessions of the round before end while everyone asks again.
#[tokio::test]
async fn no_ended_session_is_handed_out_although_a_worker_is_killed() {
    const PEOPLE: usize = 100;
    const ROUNDS: usize = 3;
    let node = Node::rabbitmq().await;
    let mut env = TestEnv::builder().rabbitmq(&node).start().await;
    let mut workers = vec![env.start_worker().await, env.start_worker().await];
    let queue = env.ended_queue();
    let mut ended = HashSet::new();
    let mut current: Vec<Value> = Vec::new();
    for round in 0..ROUNDS {
        // By session, by user, or both, each in the middle of the person's next request.
        let endings = current.iter().enumerate().map(|(n, event)| {
            let (user, session) = (&event["userId"], &event["sessionId"]);
            let data = match n % 3 {
                0 => json!({ "sessionId": session }),
                1 => json!({ "userId": user }),
                _ => json!({ "userId": user, "sessionId": session }),
            };
            end(&env, data)
        });
        let requests = (0..PEOPLE).map(|n| {
            let data = json!({ "userId": format!("user-{n}") });
            let rabbitmq = &env.rabbitmq;
            async move { rabbitmq.publish_request(&format!("{round}-during-{n}"), data).await }
        });
        let published = tokio::join!(join_all(endings), join_all(requests));
        drop(published);
        if round == 1 {
            workers.remove(0).kill().await;
            workers.push(env.start_worker().await);
        }
        wait_until("all endings are acked", async || node.messages_in(&queue).await == 0).await;
        ended.extend(current.drain(..).map(|event| event["sessionId"].to_string()));
        for n in 0..PEOPLE {
            env.publish_request(&format!("{round}-after-{n}"), &format!("user-{n}")).await;
        }
        // Redelivered requests have their events twice.
        let mut waiting: HashSet<_> = (0..PEOPLE).map(|n| format!("user-{n}")).collect();
        while !waiting.is_empty() {
            let event = env.rabbitmq.next_event().await.data();
            let id = event["requestId"].as_str().unwrap();
            if !id.contains("during") {
                let session = event["sessionId"].to_string();
                assert!(!ended.contains(&session), "round {round}: {event}");
                if waiting.remove(event["userId"].as_str().unwrap()) {
                    current.push(event);
                }
            }
        }
    }
}
