//! The servers that workers use: one node each, or clusters.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use clap::ValueEnum;
use futures_util::future::join_all;
use tokio::{sync::MutexGuard, time::sleep};

use crate::{
    rabbitmq_cluster::RabbitmqCluster,
    redis_servers::Servers,
    support::{Node, worker::Settings},
};

/// How many nodes each server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    /// One RabbitMQ and one Redis
    Single,
    /// A RabbitMQ cluster of three nodes, and a Redis Cluster of three primaries and their replicas
    Cluster,
    /// A RabbitMQ cluster of three nodes, and a Redis with two replicas and three sentinels
    Sentinel,
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
    /// With the names of the nodes that hold data.
    Redis(Servers, Vec<String>),
}

impl Nodes {
    pub async fn rabbitmq(topology: Topology) -> Self {
        Self::new(match topology {
            Topology::Single => Owner::Single(Node::rabbitmq().await),
            Topology::Cluster | Topology::Sentinel => {
                Owner::Rabbitmq(RabbitmqCluster::start(&[]).await)
            }
        })
    }

    pub async fn redis(topology: Topology) -> Self {
        let redis = |servers, count: usize| {
            Owner::Redis(servers, (1..=count).map(|number| number.to_string()).collect())
        };
        Self::new(match topology {
            Topology::Single => Owner::Single(Node::redis().await),
            Topology::Cluster => redis(Servers::cluster(&[]).await, 6),
            Topology::Sentinel => redis(Servers::sentinels(&[], &[]).await, 3),
        })
    }

    fn new(owner: Owner) -> Self {
        Self { owner, lock: tokio::sync::Mutex::default(), faults: AtomicUsize::new(0) }
    }

    /// The URLs of nodes that workers reach by nothing but these, so that proxies can stand before them. A
    /// Redis of several nodes gives its clients their addresses itself.
    pub fn urls(&self) -> Vec<String> {
        match &self.owner {
            Owner::Single(node) => vec![node.url.clone()],
            Owner::Rabbitmq(cluster) => cluster.nodes.iter().map(|node| node.url.clone()).collect(),
            Owner::Redis(..) => Vec::new(),
        }
    }

    /// What workers need besides, to find the nodes of such a Redis.
    pub fn settings(&self) -> Settings {
        let Owner::Redis(servers, nodes) = &self.owner else { return Settings::new() };
        let settings = if nodes.len() == 6 {
            vec![("REDIS_MODE", "cluster"), ("REDIS_URL", &*servers.urls)]
        } else {
            // No credentials, and the first database.
            let url = ("REDIS_URL", "redis://127.0.0.1/0");
            vec![("REDIS_MODE", "sentinel"), ("REDIS_SENTINELS", &*servers.urls), url]
        };
        let named = settings.into_iter();
        named.map(|(name, value)| (format!("HANDOFF_{name}"), value.to_owned())).collect()
    }

    pub fn is_replicated_redis(&self) -> bool {
        matches!(self.owner, Owner::Redis(..))
    }

    fn count(&self) -> usize {
        match &self.owner {
            Owner::Single(_) => 1,
            Owner::Rabbitmq(cluster) => cluster.nodes.len(),
            Owner::Redis(_, nodes) => nodes.len(),
        }
    }

    /// Kills nodes, and starts them after this time.
    pub async fn kill(&self, down_time: Duration) {
        let (nodes, _lock) = self.some().await;
        self.on_all(&nodes, "kill").await;
        sleep(down_time).await;
        self.on_all(&nodes, "start").await;
    }

    /// Freezes nodes for this time.
    pub async fn freeze(&self, duration: Duration) {
        let (nodes, _lock) = self.some().await;
        self.on_all(&nodes, "freeze").await;
        sleep(duration).await;
        self.on_all(&nodes, "thaw").await;
    }

    /// Restarts all nodes, one after another.
    pub async fn restart(&self) {
        let _lock = self.lock.lock().await;
        for node in 0..self.count() {
            self.on(node, "stop").await;
            self.on(node, "start").await;
        }
    }

    /// The nodes for a fault: each in turn, and every third time all but one of a RabbitMQ cluster.
    async fn some(&self) -> (Vec<usize>, MutexGuard<'_, ()>) {
        let lock = self.lock.lock().await;
        let number = self.faults.fetch_add(1, Ordering::Relaxed);
        let most = match &self.owner {
            Owner::Rabbitmq(cluster) if number % 3 == 2 => cluster.nodes.len() - 1,
            _ => 1,
        };
        ((0..most).map(|offset| (number + offset) % self.count()).collect(), lock)
    }

    async fn on_all(&self, nodes: &[usize], command: &str) {
        join_all(nodes.iter().map(|node| self.on(*node, command))).await;
    }

    /// Runs one of the commands of `rabbitmq-node` and `redis-node` for a node.
    async fn on(&self, node: usize, command: &str) {
        match &self.owner {
            Owner::Single(node) => node.run(command).await,
            Owner::Rabbitmq(cluster) => cluster.nodes[node].run(command).await,
            Owner::Redis(servers, nodes) => servers.run(command, &nodes[node]).await,
        };
    }
}
