//! How many scripts a new link takes, and what becomes of those that Redis does not execute.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::{Node, TestEnv, log_text, redis};

#[tokio::test]
async fn new_link_takes_three_scripts_if_one_server_has_all_keys() {
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    let admin = redis::connect(&node.url).await;
    let mut scripts = Vec::new();
    for number in 0..5 {
        let so_far = redis::info_number(&admin, "commandstats", "cmdstat_evalsha:").await;
        env.publish_request(&format!("r-{number}"), &format!("user-{number}")).await;
        assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
        worker.wait_for_logs(log_text::REQUEST_FINISHED, number + 1).await;
        let by_now = redis::info_number(&admin, "commandstats", "cmdstat_evalsha:").await;
        scripts.push(by_now.unwrap() - so_far.unwrap_or(0));
    }
    // Claim, token, link: one that takes a second also extends its lease.
    assert_eq!(scripts.iter().min(), Some(&3), "{scripts:?}");
}

#[tokio::test]
async fn cluster_of_one_shard_serves_single_mode_and_is_asked_once_for_a_script_over_two_slots() {
    let node = Node::redis_with(&redis::CLUSTER).await;
    let mut admin = redis::connect(&node.url).await;
    redis::add_all_slots(&mut admin).await;
    redis::wait_for_cluster(&admin).await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let worker = env.start_worker().await;
    // Redis 6.0 does not count its errors.
    let counts_errors = redis::info_number(&admin, "server", "redis_version:6.0").await.is_none();
    for round in 0..2 {
        for number in 0..3 {
            let user = format!("user-{round}-{number}");
            let mut sessions = Vec::new();
            for (request, reused) in [("a", false), ("b", true)] {
                env.publish_request(&format!("{user}-{request}"), &user).await;
                let ready = env.rabbitmq.next_event().await.data();
                assert_eq!(ready["reused"], reused, "{user}-{request}");
                sessions.push(ready["sessionId"].clone());
            }
            assert_eq!(sessions[0], sessions[1]);
            let ended = json!({ "sessionId": sessions[0] });
            env.rabbitmq.publish_ending(ended, BasicProperties::default()).await;
            worker.wait_for_endings("forgotten", round * 3 + number + 1).await;
            env.publish_request(&format!("{user}-c"), &user).await;
            assert_eq!(env.rabbitmq.next_event().await.data()["reused"], false);
        }
        let refused = redis::info_number(&admin, "errorstats", "errorstat_CROSSSLOT:").await;
        // One more for each script that takes longer than its limit on a busy machine.
        let connections = 1 + worker.metric("handoff_cache_reconnects_total").await as u64;
        if counts_errors {
            let expected = round as u64 + 1..=connections;
            assert!(expected.contains(&refused.unwrap()), "{refused:?} instead of {expected:?}");
        }
        if connections == 1 {
            assert_eq!(worker.metric("handoff_cache_errors_total").await, 0.0);
        }
        if round == 0 {
            // The next connection may lead to another server.
            redis::run(&mut admin, "CLIENT KILL TYPE normal SKIPME yes").await;
        }
    }
    assert_eq!(worker.log_lines(log_text::REDIS_REFUSES).len(), 0);
    let refusals = "handoff_cache_refusals_total{cause=\"crossslot\"}";
    assert_eq!(worker.metric_or_zero(refusals).await, 0.0);
}
