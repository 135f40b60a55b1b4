//! The Redis connections that all requests share.
//!
//! deadpool-redis 0.23 sends a PING at each checkout (deadpool-rs/deadpool#307), which would cost each
//! operation a second round trip. So one connection to each server stays checked out, and all requests
//! pipeline their commands on it. While it is down, operations fail at once and the keeper reconnects: an
//! unresponsive Redis costs the requests in flight one time-out, and later requests nothing.

use std::{sync::Arc, time::Duration};

use deadpool_redis::redis::FromRedisValue;
use futures_util::future::BoxFuture;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    cluster::Cluster,
    connector::Connector,
    deferred::DeferredScripts,
    error::CacheError,
    keeper::ConnectionState,
    node::{CacheNode, Failure},
    refusal::Refusal,
    scripts::{SCRIPT_TIMEOUT, ScriptCall},
};
use crate::{
    config::{RedisMode, RedisSettings},
    telemetry::metrics::Metrics,
};

pub(super) struct Pool {
    pub(super) deferred: Arc<DeferredScripts>,
    servers: Servers,
}

enum Servers {
    One(Arc<CacheNode>),
    Cluster(Cluster),
}

impl Pool {
    /// Starts to connect, and returns before there is a connection. `patience`: how long requests wait for Redis.
    pub(super) fn new(settings: &RedisSettings, patience: Duration, metrics: Arc<Metrics>) -> Self {
        let deferred = Arc::new(DeferredScripts::default());
        let servers = match settings.mode {
            RedisMode::Single | RedisMode::Sentinel => {
                let refresh = Arc::new(Notify::new());
                let state = ConnectionState::new(
                    metrics,
                    Arc::clone(&deferred),
                    refresh,
                    Box::new(|_| true),
                );
                Servers::One(Arc::new(CacheNode::start(Connector::new(settings, None), state)))
            }
            RedisMode::Cluster => {
                Servers::Cluster(Cluster::start(settings, patience, metrics, Arc::clone(&deferred)))
            }
        };
        Self { deferred, servers }
    }

    /// Runs a script on the server that has this key, which is one of the script's.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        key: &str,
        script: &ScriptCall,
    ) -> Result<T, CacheError> {
        match &self.servers {
            Servers::One(node) => node.run(script, false, None).await.map_err(error_of_one),
            Servers::Cluster(cluster) => cluster.run(key, script).await,
        }
    }

    /// Whether to try a script with keys in two slots: one server has all keys, and has not refused such a script.
    pub(super) fn takes_two_slots(&self) -> bool {
        matches!(&self.servers, Servers::One(node) if node.takes_two_slots())
    }

    /// Runs a script with keys in two slots. `None`: the server executes no such script, nor has it this one.
    pub(super) async fn run_over_two_slots<T: FromRedisValue>(
        &self,
        script: &ScriptCall,
    ) -> Result<Option<T>, CacheError> {
        match &self.servers {
            Servers::One(node) => node.run_over_two_slots(script).await.map_err(error_of_one),
            Servers::Cluster(_) => Ok(None),
        }
    }

    /// Sends the scripts that wait for this key. If polled before a script of the key, Redis runs them ahead of it,
    /// without another round trip. `None` if there are none, or no connection.
    pub(super) fn run_deferred(&self, key: &str) -> Option<BoxFuture<'_, ()>> {
        // Each claim asks. The queue is searched only if it is of use: it is long while Redis is down.
        if self.deferred.is_empty() {
            return None;
        }
        let connection = self.node(key).state.working_connection()?;
        let batch = self.deferred.batch_of(key)?;
        Some(Box::pin(async move {
            // A time-out puts them back. The script that follows has the same limit.
            let _ = timeout(SCRIPT_TIMEOUT, batch.run(&connection)).await;
        }))
    }

    /// The server that has this key at the moment.
    pub(super) fn node(&self, key: &str) -> Arc<CacheNode> {
        match &self.servers {
            Servers::One(node) => Arc::clone(node),
            Servers::Cluster(cluster) => cluster.node(key),
        }
    }

    /// Records that a script with several keys has run, one of them this.
    pub(super) fn served(&self, key: &str) {
        if let Servers::Cluster(cluster) = &self.servers {
            cluster.served(key);
        }
    }

    /// Since when Redis executes nothing on this key.
    pub(super) fn unavailable_since(&self, key: &str) -> Option<Instant> {
        match &self.servers {
            Servers::One(node) => node.state.unavailable_since(),
            Servers::Cluster(cluster) => cluster.unavailable_since(key),
        }
    }

    /// Waits for a working connection to the server that has this key, whichever that is by then.
    pub(super) async fn until_connected(&self, key: &str) {
        match &self.servers {
            Servers::One(node) => node.state.until_connected().await,
            Servers::Cluster(cluster) => cluster.until_connected(key).await,
        }
    }

    /// Waits until every server has been connected to.
    pub(super) async fn until_all_connected(&self) {
        match &self.servers {
            Servers::One(node) => node.state.until_connected().await,
            Servers::Cluster(cluster) => cluster.until_all_connected().await,
        }
    }

    /// Whether every server is connected, and executed its last operation.
    pub(super) fn is_available(&self) -> bool {
        match &self.servers {
            Servers::One(node) => node.state.is_available(),
            Servers::Cluster(cluster) => cluster.is_available(),
        }
    }
}

/// Why a script gave no result, where one server has all keys.
fn error_of_one(failure: Failure) -> CacheError {
    match failure {
        Failure::Error(error) => error,
        // Only a node of a cluster redirects.
        Failure::Moved(_) => CacheError::Refused(Refusal::Moved),
        Failure::Ask(_) => CacheError::Refused(Refusal::Ask),
    }
}
