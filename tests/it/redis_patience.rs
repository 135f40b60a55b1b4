//! A Redis that is away for a moment costs no second session, and one that is away for long costs each
//! request nothing more.

use std::time::{Duration, Instant};

use crate::support::{Flow, Node, TestEnv, log_text, platform::hold_calls, redis, wait_until};

#[tokio::test]
async fn links_are_reused_although_redis_is_frozen_for_a_moment() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    node.freeze().await;
    env.request_again(0..10).await;
    worker.wait_for_in_flight(10).await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.thaw().await;
    env.expect_all_reused(10).await;
    assert_eq!(env.platform.session_calls().len(), 10);
}

#[tokio::test]
async fn idle_connection_that_redis_closed_costs_no_session() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    // Without patience, too: a new connection is made within the limit of one operation.
    env.set("REDIS_PATIENCE", "0s");
    let _worker = env.start_worker().await;
    env.publish_request("r", "ann").await;
    env.rabbitmq.next_event().await;
    let mut client = redis::connect(&node.url).await;
    for number in 0..4 {
        redis::run(&mut client, "CLIENT KILL TYPE normal SKIPME yes").await;
        env.publish_request(&format!("r-{number}"), "ann").await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true, "{number}");
    }
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn long_outage_delays_only_its_first_requests_and_the_replica_reuses_its_own_links() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("REDIS_URL").await;
    env.set("REDIS_PATIENCE", "1s");
    let worker = env.start_worker().await;
    proxy.set_flow(Flow::Dropped);
    let mut took = Vec::new();
    for number in 0..4 {
        let published = Instant::now();
        env.publish_request(&format!("r-{number}"), "ann").await;
        let event = env.rabbitmq.next_event().await;
        took.push(published.elapsed());
        assert_eq!(event.data()["reused"], number > 0, "{number}");
        assert_eq!(event.data()["sessionId"], "session-0");
    }
    let (first, later) = took.split_first().unwrap();
    assert!(*first >= Duration::from_millis(900), "{first:?}");
    assert!(later.iter().all(|took| *took < Duration::from_millis(900)), "{later:?}");
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.publish_request("r-again", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn lease_outlives_an_outage_as_long_as_the_patience() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let (session, script) = hold_calls(|call| !call.is_token());
    env.platform.set_script(script);
    let holder = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    node.freeze().await;
    holder.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    // The patience is 3 s.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    node.thaw().await;
    holder.wait_for_log(log_text::REDIS_RECONNECTED).await;
    let other = env.start_worker().await;
    for number in 2..22 {
        env.publish_request(&format!("r-{number}"), "ann").await;
    }
    let has_some = async || other.metric("handoff_in_flight").await > 0.0;
    wait_until("the other replica has requests", has_some).await;
    // Longer than what was left of the lease.
    tokio::time::sleep(Duration::from_secs(3)).await;
    session.open();
    let events = env.rabbitmq.next_events(21).await;
    assert!(events.iter().all(|event| event.data()["sessionId"] == "session-0"));
    assert_eq!(env.platform.session_calls().len(), 1);
}

#[tokio::test]
async fn what_redis_lost_in_a_restart_is_stored_again() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    // This Redis saves nothing, as a replica that has not received the latest writes.
    node.kill().await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    node.start().await;
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    env.request_again(0..10).await;
    env.expect_all_reused(10).await;
    assert_eq!(env.platform.session_calls().len(), 10);
}

#[tokio::test]
async fn late_store_of_a_person_does_not_delay_their_request_beyond_one_operation() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    env.set("REDIS_PATIENCE", "0s");
    let worker = env.start_worker().await;
    // A full Redis: the link waits to be stored, while the connection works.
    redis::run(&mut redis::connect(&node.url).await, "CONFIG SET maxmemory 1").await;
    env.publish_request("r-1", "ann").await;
    env.rabbitmq.next_event().await;
    node.freeze().await;
    env.publish_request("r-2", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
    let line = worker.wait_for_logs(log_text::REQUEST_FINISHED, 2).await;
    println!("{line}");
    assert!(line["duration_ms"].as_u64().unwrap() < 900, "{line}");
}
