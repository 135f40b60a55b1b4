//! Nodes that are killed, frozen or cut off from the majority.

use std::time::Duration;

use tokio::time::sleep;

use super::cluster::RabbitmqCluster;
use super::{load::Load, start, start_with};
use crate::support::{TestEnv, Worker, log_text};

/// The heartbeat in the URLs of tests that freeze nodes, in seconds.
const HEARTBEAT: u64 = 2;
const PER_SECOND: f64 = 25.0;
/// Longer than two heartbeats and a reconnect.
const FREEZE: Duration = Duration::from_secs(15);
/// Longer than it takes the other nodes to give a node up, and a worker to notice.
const LONG_FREEZE: Duration = Duration::from_secs(30);

fn urls_with_heartbeat(cluster: &RabbitmqCluster) -> String {
    let urls = cluster.nodes.iter().map(|node| format!("{}?heartbeat={HEARTBEAT}", node.url));
    urls.collect::<Vec<_>>().join(",")
}

/// A worker, and the number of the node that it is connected to. It declares the request queue there, which is
/// where RabbitMQ then puts its leader.
async fn worker(env: &TestEnv, cluster: &RabbitmqCluster) -> (Worker, usize) {
    let worker = env.start_worker().await;
    (worker, cluster.leader_of(&env.rabbitmq.queue).await)
}

#[tokio::test]
async fn queue_leader_killed_under_load_costs_no_event_and_no_session() {
    let (cluster, env) = start().await;
    let (worker, leader) = worker(&env, &cluster).await;
    let load = Load::start(&env, &cluster, (leader + 1) % 3).await;
    let producing = load.produce(PER_SECOND);
    load.wait_for_next_event().await;
    cluster.nodes[leader].kill().await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    load.wait_for_next_event().await;
    cluster.nodes[leader].start().await;
    // The worker is connected to another node than the new leader, or to the same.
    let second = cluster.leader_of(&env.rabbitmq.queue).await;
    cluster.nodes[second].kill().await;
    load.wait_for_next_event().await;
    cluster.nodes[second].start().await;
    load.wait_for_next_event().await;
    producing.stop().await;
    load.wait_for_events().await;
    let gap = load.assert_all_ready("two leaders killed", &env, &worker);
    assert!(gap < Duration::from_secs(8), "{gap:?}");
    worker.stop().await;
}

#[tokio::test]
async fn frozen_node_that_leads_no_queue_is_left_for_another_within_its_heartbeats() {
    let (cluster, mut env) = start().await;
    env.set("AMQP_URL", &urls_with_heartbeat(&cluster));
    let (worker, connected) = worker(&env, &cluster).await;
    let leader = (connected + 1) % 3;
    cluster.move_leader(&env.rabbitmq.queue, leader).await;
    let load = Load::start(&env, &cluster, leader).await;
    let producing = load.produce(PER_SECOND);
    load.wait_for_next_event().await;
    cluster.nodes[connected].freeze().await;
    sleep(FREEZE).await;
    // RabbitMQ declares no binding until then.
    let reconnected = worker.log_lines(log_text::CONSUMING).len();
    cluster.nodes[connected].thaw().await;
    load.wait_for_next_event().await;
    producing.stop().await;
    load.wait_for_events().await;
    let gap = load.assert_all_ready("frozen node", &env, &worker);
    assert_eq!(reconnected, 2);
    assert!(gap < Duration::from_secs(2 * HEARTBEAT + 4), "{gap:?}");
    worker.stop().await;
}

#[tokio::test]
async fn frozen_leader_is_replaced_once_the_other_nodes_give_it_up() {
    // RabbitMQ's default is 60; a node that is silent for a quarter more or less is given up.
    let (cluster, mut env) = start_with(&["net_ticktime = 8"]).await;
    env.set("AMQP_URL", &urls_with_heartbeat(&cluster));
    let (worker, leader) = worker(&env, &cluster).await;
    let load = Load::start(&env, &cluster, (leader + 1) % 3).await;
    let producing = load.produce(PER_SECOND);
    load.wait_for_next_event().await;
    cluster.nodes[leader].freeze().await;
    sleep(LONG_FREEZE).await;
    cluster.nodes[leader].thaw().await;
    load.wait_for_next_event().await;
    producing.stop().await;
    load.wait_for_events().await;
    let gap = load.assert_all_ready("frozen leader", &env, &worker);
    // A tick and a quarter, and one try to consume that RabbitMQ did not answer.
    assert!(gap < Duration::from_secs(10 + 10 + 4), "{gap:?}");
    worker.stop().await;
}

#[tokio::test]
async fn minority_serves_nothing_until_the_other_nodes_are_back() {
    let (cluster, env) = start().await;
    let (worker, connected) = worker(&env, &cluster).await;
    let load = Load::start(&env, &cluster, connected).await;
    let producing = load.produce(PER_SECOND);
    load.wait_for_next_event().await;
    let others = [(connected + 1) % 3, (connected + 2) % 3];
    tokio::join!(cluster.nodes[others[0]].kill(), cluster.nodes[others[1]].kill());
    sleep(Duration::from_secs(12)).await;
    // RabbitMQ shows an empty queue with a consumer: the worker cannot know.
    worker.assert_alive().await;
    assert_eq!(worker.get("/readyz").await.0, 200);
    tokio::join!(cluster.nodes[others[0]].start(), cluster.nodes[others[1]].start());
    load.wait_for_next_event().await;
    producing.stop().await;
    load.wait_for_events().await;
    load.assert_all_ready("minority", &env, &worker);
    worker.stop().await;
}
