//! Finds the servers that the worker would write to, for `handoff doctor`.

use std::collections::BTreeMap;

use super::{
    cluster::{SlotRange, free_key, slots_at},
    dial::{Address, CONNECT_TIMEOUT},
    error::CacheError,
    sentinel::opinions,
};
use crate::config::{RedisNodes, Sentinels};

/// What one sentinel calls the primary, or why it does not answer.
pub(crate) type Opinion = (Address, Result<Address, CacheError>);

/// What each sentinel says.
pub(crate) async fn sentinel_opinions(sentinels: &Sentinels) -> Vec<Opinion> {
    opinions(&sentinels.nodes.current(), &sentinels.service).await
}

/// A Redis Cluster, as one of its nodes sees it.
pub(crate) struct ClusterView {
    ranges: Vec<SlotRange>,
    /// The nodes in the setting that do not answer, and why.
    pub(crate) failed: Vec<Opinion>,
}

impl ClusterView {
    /// How many slots have a primary, of 16384.
    pub(crate) fn covered(&self) -> usize {
        self.ranges.iter().map(|range| usize::from(range.last - range.first) + 1).sum()
    }

    /// The primaries, each with a key below `prefix` that it has.
    pub(crate) fn primaries(&self, prefix: &str) -> Vec<(Address, String)> {
        let mut primaries = BTreeMap::new();
        for range in &self.ranges {
            let key = || (range.primary.clone(), free_key(prefix, range));
            primaries.entry(range.primary.to_string()).or_insert_with(key);
        }
        primaries.into_values().collect()
    }

    /// How many primaries have no replica.
    pub(crate) fn without_replica(&self) -> usize {
        let mut alone = BTreeMap::new();
        for range in &self.ranges {
            alone.insert(range.primary.to_string(), range.replicas.is_empty());
        }
        alone.into_values().filter(|is_alone| *is_alone).count()
    }
}

/// Asks the nodes in the setting for the slots of the cluster.
///
/// # Errors
/// Why none of them answered.
pub(crate) async fn cluster_view(nodes: &RedisNodes) -> Result<ClusterView, CacheError> {
    let mut failed = Vec::new();
    let mut view = None;
    let mut failure = CacheError::Unavailable;
    for node in nodes.nodes() {
        match slots_at(node, CONNECT_TIMEOUT).await {
            Ok(ranges) => {
                view.get_or_insert(ranges);
            }
            Err(error) => {
                failure = error.clone();
                failed.push((Address::of(node), Err(error)));
            }
        }
    }
    view.map(|ranges| ClusterView { ranges, failed }).ok_or(failure)
}
