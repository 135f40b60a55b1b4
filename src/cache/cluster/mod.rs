//! A Redis Cluster: its primaries, and which of them has the keys of a request.
//!
//! Each primary has a connection and a keeper of its own, so that a shard that is down delays its own keys
//! only. redis 1.8's `ClusterConnection` stops every command while it reads the slots again
//! (redis-rs/redis-rs#2092), and reconnects with the credentials it was created with.

mod refresh;
mod refusing;
mod shared;
mod slots;

use std::{sync::Arc, time::Duration};

use deadpool_redis::redis::FromRedisValue;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use self::{refresh::Refresher, refusing::RefusingSlots, shared::Shared, slots::slot_of};
pub(super) use self::{
    refresh::slots_at,
    slots::{SlotRange, free_key},
};
use super::{
    deferred::DeferredScripts,
    error::CacheError,
    node::{CacheNode, Failure},
    refusal::Refusal,
    scripts::{SCRIPT_TIMEOUT, ScriptCall},
};
use crate::{config::RedisSettings, telemetry::metrics::Metrics};

/// How many redirections one script follows.
const MAX_REDIRECTIONS: usize = 4;

/// The nodes of a cluster.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    /// How long a request waits at most, redirections included.
    patience: Duration,
    refusing: RefusingSlots,
    _refresher: AbortOnDropHandle<()>,
}

impl Cluster {
    /// Starts to read the slots, and returns before there is an answer.
    pub(super) fn start(
        settings: &RedisSettings,
        patience: Duration,
        metrics: Arc<Metrics>,
        deferred: Arc<DeferredScripts>,
    ) -> Self {
        let shared = Arc::new(Shared::new(settings, metrics, deferred));
        let refresher = Refresher::new(Arc::clone(&shared));
        let refresher = AbortOnDropHandle::new(tokio::spawn(refresher.run()));
        Self { shared, patience, refusing: RefusingSlots::default(), _refresher: refresher }
    }

    /// Runs a script on the node that has this key, and follows redirections.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        key: &str,
        script: &ScriptCall,
    ) -> Result<T, CacheError> {
        let slot = slot_of(key);
        let mut node = self.shared.owner(slot);
        let mut asking = false;
        let began = Instant::now();
        // For the connections to nodes that the worker does not know yet.
        let deadline = began + SCRIPT_TIMEOUT;
        for hop in 0..=MAX_REDIRECTIONS {
            let left = self.patience.saturating_sub(began.elapsed());
            let limit = (hop > 0 && left < SCRIPT_TIMEOUT).then_some(left);
            (node, asking) = match node.run(script, asking, limit).await {
                Ok(value) => return Ok(value),
                Err(Failure::Error(error)) => {
                    if error.refusal() == Some(Refusal::TryAgain) {
                        self.refusing.refused(slot);
                    }
                    return Err(error);
                }
                Err(Failure::Moved(address)) => (self.shared.moved(slot, &address), false),
                Err(Failure::Ask(address)) => (self.shared.node_at(&address, true), true),
            };
            if timeout_at(deadline, node.state.until_connected()).await.is_err() {
                break;
            }
        }
        // A redirected script has not run.
        self.refusing.refused(slot);
        Err(CacheError::Unavailable)
    }

    /// The node that has this key.
    pub(super) fn node(&self, key: &str) -> Arc<CacheNode> {
        self.shared.owner(slot_of(key))
    }

    /// Records that the slot of this key is served, by a script with several keys: one with a single key may
    /// succeed while the slot is stuck.
    pub(super) fn served(&self, key: &str) {
        if !self.refusing.is_empty() {
            self.refusing.served(slot_of(key));
        }
    }

    /// Since when the node that has this key, or its slot alone, executes nothing.
    pub(super) fn unavailable_since(&self, key: &str) -> Option<Instant> {
        let slot = slot_of(key);
        let node = self.shared.owner(slot).state.unavailable_since();
        [node, self.refusing.since(slot)].into_iter().flatten().min()
    }

    /// Waits for a working connection to the node that has this key, whichever that is by then.
    pub(super) async fn until_connected(&self, key: &str) {
        let slot = slot_of(key);
        let mut map = self.shared.map.subscribe();
        loop {
            let node = Arc::clone(map.borrow_and_update().owner(slot));
            tokio::select! {
                () = node.state.until_connected() => return,
                // Cannot fail: `self` holds the sender.
                _ = map.changed() => {}
            }
        }
    }

    /// Waits until all nodes have been connected to.
    pub(super) async fn until_all_connected(&self) {
        let mut map = self.shared.map.subscribe();
        loop {
            // Cannot fail: `self` holds the sender.
            let _ = map.wait_for(|map| map.is_known()).await;
            let nodes: Vec<_> = map.borrow_and_update().nodes().cloned().collect();
            let all = async {
                for node in nodes {
                    node.state.until_connected().await;
                }
            };
            tokio::select! {
                () = all => return,
                _ = map.changed() => {}
            }
        }
    }

    /// Whether every node is connected, and executed its last operation.
    pub(super) fn is_available(&self) -> bool {
        let map = self.shared.map.borrow();
        map.is_known() && map.nodes().all(|node| node.state.is_available())
    }
}
