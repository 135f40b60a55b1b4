//! What the operations on a Redis Cluster and the task that reads its slots share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::slots::{SlotMap, SlotRange, slot_of};
use crate::{
    cache::{
        connector::Connector, deferred::DeferredScripts, dial::Address, keeper::ConnectionState,
        log, node::CacheNode,
    },
    config::RedisSettings,
    telemetry::metrics::Metrics,
};

/// How long a node that owns no slot is kept after an `ASK` led to it.
const KEPT_AFTER_ASK: Duration = Duration::from_secs(30);

/// The nodes and the slots.
pub(super) struct Shared {
    pub(super) settings: RedisSettings,
    metrics: Arc<Metrics>,
    deferred: Arc<DeferredScripts>,
    pub(super) map: watch::Sender<Arc<SlotMap>>,
    pub(super) nodes: Mutex<HashMap<Address, Known>>,
    /// Asks the refresher to read the slots again.
    pub(super) refresh: Arc<Notify>,
}

/// A node, and when an `ASK` last led to it.
pub(super) struct Known {
    node: Arc<CacheNode>,
    asked: Option<Instant>,
}

impl Shared {
    pub(super) fn new(
        settings: &RedisSettings,
        metrics: Arc<Metrics>,
        deferred: Arc<DeferredScripts>,
    ) -> Self {
        let refresh = Arc::new(Notify::new());
        let state = ConnectionState::new(
            Arc::clone(&metrics),
            Arc::clone(&deferred),
            Arc::clone(&refresh),
            Box::new(|_| false),
        );
        let placeholder = Arc::new(CacheNode::without_server(state));
        Self {
            settings: settings.clone(),
            metrics,
            deferred,
            map: watch::Sender::new(Arc::new(SlotMap::unknown(placeholder))),
            nodes: Mutex::default(),
            refresh,
        }
    }

    pub(super) fn owner(&self, slot: u16) -> Arc<CacheNode> {
        Arc::clone(self.map.borrow().owner(slot))
    }

    /// The node at this address. Starts to connect to it if it is new.
    pub(super) fn node_at(self: &Arc<Self>, address: &Address, asked: bool) -> Arc<CacheNode> {
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(address.clone()).or_insert_with(|| {
            let node = Arc::new(self.start_node(address));
            Known { node, asked: None }
        });
        if asked {
            known.asked = Some(Instant::now());
        }
        Arc::clone(&known.node)
    }

    fn start_node(self: &Arc<Self>, address: &Address) -> CacheNode {
        // Weak: the node must not keep alive what keeps it alive.
        let (shared, own) = (Arc::downgrade(self), address.clone());
        let owns = Box::new(move |key: &str| {
            let owner = shared.upgrade().map(|shared| shared.owner(slot_of(key)));
            owner.is_some_and(|owner| owner.address.as_ref() == Some(&own))
        });
        let state = ConnectionState::new(
            Arc::clone(&self.metrics),
            Arc::clone(&self.deferred),
            Arc::clone(&self.refresh),
            owns,
        );
        CacheNode::start(Connector::new(&self.settings, Some(address.clone())), state)
    }

    /// Records that a node has redirected a key to this address for good.
    pub(super) fn moved(self: &Arc<Self>, slot: u16, address: &Address) -> Arc<CacheNode> {
        let node = self.node_at(address, false);
        self.map.send_if_modified(|map| {
            let is_new = !Arc::ptr_eq(map.owner(slot), &node);
            if is_new {
                Arc::make_mut(map).assign(std::iter::once(slot), &node);
            }
            is_new
        });
        self.refresh.notify_one();
        node
    }

    /// Takes over what a node answered. A slot that it does not name keeps its owner.
    pub(super) fn install(self: &Arc<Self>, ranges: &[SlotRange]) {
        let former = Arc::clone(&self.map.borrow());
        let mut map = (*former).clone();
        for range in ranges {
            let node = self.node_at(&range.primary, false);
            map.assign(range.first..=range.last, &node);
        }
        let map = map.without_idle_nodes();
        let is_in_use = |node: &Arc<CacheNode>| map.nodes().any(|used| Arc::ptr_eq(used, node));
        self.nodes.lock().retain(|_, known| {
            is_in_use(&known.node)
                || known.asked.is_some_and(|asked| asked.elapsed() < KEPT_AFTER_ASK)
        });
        let is_down = |node: &Arc<CacheNode>| !node.state.has_working_connection();
        let replaced = former.nodes().filter(|node| is_down(node) && !is_in_use(node));
        replaced.filter_map(|node| node.address.as_ref()).for_each(log::node_replaced);
        // The new owner may lack what its predecessor had not replicated.
        self.deferred.repeat_recent(&|key| {
            let slot = slot_of(key);
            !Arc::ptr_eq(former.owner(slot), map.owner(slot))
        });
        let map = Arc::new(map);
        self.map.send_replace(Arc::clone(&map));
        for node in map.nodes() {
            node.state.has_work.notify_one();
        }
    }
}
