//! A RabbitMQ cluster of three nodes, which a test breaks one by one.

use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::support::{
    Node,
    node::{output, script},
    wait_until,
};

/// Three nodes on this machine. Destroyed when it is dropped.
pub struct RabbitmqCluster {
    dir: PathBuf,
    pub nodes: Vec<Node>,
}

impl RabbitmqCluster {
    /// Starts it with these lines in each `rabbitmq.conf`.
    pub async fn start(lines: &[&str]) -> Self {
        let name = format!("handoff-cluster-{}", uuid::Uuid::new_v4().simple());
        let dir = std::env::temp_dir().join(name);
        // Before it starts, so that a start that fails is cleaned up, too.
        let mut cluster = Self { dir, nodes: Vec::new() };
        let mut start = Command::new(script("rabbitmq-cluster"));
        let urls = output(start.arg("start").arg(&cluster.dir).args(lines)).await;
        for (number, url) in urls.trim().split(',').enumerate() {
            let dir = cluster.dir.join((number + 1).to_string());
            cluster.nodes.push(Node::running_rabbitmq(dir, url.to_owned()));
        }
        cluster
    }

    /// The nodes' URLs as a list.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(|node| node.url.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The number of the node that leads a quorum queue.
    pub async fn leader_of(&self, queue: &str) -> usize {
        let list = ["--quiet", "list_queues", "name", "leader", "--formatter", "json"];
        let queues: Vec<Value> = serde_json::from_str(&self.nodes[0].ctl(&list).await).unwrap();
        let found = queues.iter().find(|one| one["name"] == queue).unwrap();
        self.nodes.iter().position(|node| erlang_name(node) == found["leader"]).unwrap()
    }

    /// Makes another node the leader of a quorum queue.
    pub async fn move_leader(&self, queue: &str, to: usize) {
        let member = |node| format!("{{'%2F_{queue}', '{}'}}", erlang_name(&self.nodes[node]));
        let from = member(self.leader_of(queue).await);
        let transfer = format!("ra:transfer_leadership({from}, {}).", member(to));
        self.nodes[to].ctl(&["eval", &transfer]).await;
        wait_until("the new leader", async || self.leader_of(queue).await == to).await;
    }
}

/// The name that `rabbitmq-node` gives it.
pub fn erlang_name(node: &Node) -> String {
    format!("handoff-{}@localhost", node.address().port())
}

impl Drop for RabbitmqCluster {
    fn drop(&mut self) {
        let destroyed = std::process::Command::new(script("rabbitmq-cluster"))
            .arg("destroy")
            .arg(&self.dir)
            .status();
        assert!(destroyed.is_ok() || std::thread::panicking());
    }
}
