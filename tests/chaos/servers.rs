//! The servers that workers use: one node each, or clusters.

use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use tokio::sync::MutexGuard;

use crate::{rabbitmq_cluster::RabbitmqCluster, support::Node};

/// How many nodes each server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// One RabbitMQ and one Redis.
    Single,
    /// A RabbitMQ cluster of three nodes, and one Redis.
    Cluster,
}

/// A server's nodes, one or several.
pub struct Nodes {
    owner: Owner,
    /// Allows one fault at a time.
    lock: tokio::sync::Mutex<()>,
    /// The faults so far, which choose the next node in turn.
    faults: AtomicUsize,
}

enum Owner {
    Single(Node),
    Rabbitmq(RabbitmqCluster),
}

impl Nodes {
    pub async fn rabbitmq(topology: Topology) -> Self {
        Self::new(match topology {
            Topology::Single => Owner::Single(Node::rabbitmq().await),
            Topology::Cluster => Owner::Rabbitmq(RabbitmqCluster::start(&[]).await),
        })
    }

    pub async fn redis() -> Self {
        Self::new(Owner::Single(Node::redis().await))
    }

    fn new(owner: Owner) -> Self {
        Self { owner, lock: tokio::sync::Mutex::default(), faults: AtomicUsize::new(0) }
    }

    fn nodes(&self) -> &[Node] {
        match &self.owner {
            Owner::Single(node) => std::slice::from_ref(node),
            Owner::Rabbitmq(cluster) => &cluster.nodes,
        }
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes().iter().map(|node| node.url.clone()).collect()
    }

    /// The nodes for a fault that breaks one, in turn; every third time all but one, if there are several.
    pub async fn some(&self) -> (Vec<&Node>, MutexGuard<'_, ()>) {
        let lock = self.lock.lock().await;
        let nodes = self.nodes();
        let number = self.faults.fetch_add(1, Ordering::Relaxed);
        let count = if number % 3 == 2 { (nodes.len() - 1).max(1) } else { 1 };
        let chosen = (0..count).map(|offset| &nodes[(number + offset) % nodes.len()]);
        (chosen.collect(), lock)
    }

    /// All nodes, for a fault that breaks one after another.
    pub async fn all(&self) -> (&[Node], MutexGuard<'_, ()>) {
        (self.nodes(), self.lock.lock().await)
    }
}
