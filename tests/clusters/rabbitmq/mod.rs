//! RabbitMQ clusters of three nodes.

mod cluster;
mod load;
mod lost_nodes;
mod maintenance;
mod rolling_restart;
mod stuck_retries;
mod tls;

use self::cluster::RabbitmqCluster;
use crate::support::{TestEnv, leaks::CACHE_KEY};

/// An environment on a cluster, whose workers know all nodes.
async fn start() -> (RabbitmqCluster, TestEnv) {
    start_with(&[]).await
}

/// The same, with these lines in `rabbitmq.conf`.
async fn start_with(lines: &[&str]) -> (RabbitmqCluster, TestEnv) {
    let cluster = RabbitmqCluster::start(lines).await;
    let mut env =
        TestEnv::builder().rabbitmq(&cluster.nodes[0]).without_event_queue().start().await;
    env.set("AMQP_URL", &cluster.urls());
    (cluster, env)
}

/// Has workers seal what they store in Redis.
fn seal(env: &mut TestEnv) {
    env.set("CACHE_KEY", CACHE_KEY);
}
