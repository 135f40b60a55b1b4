//! Redis: links to hand out again, tokens not yet used, leases, and what all replicas share: the rate bucket and the permits to probe.
//!
//! **Redis is optional at run time.** Every operation may fail at any time, and without Redis every
//! request is still served, at the cost of extra sessions.
//!
//! Imports run one way: `claim` → `lease` → `handle` → `pool` → `cluster` → `node` →
//! `keeper` → `connector` → `sentinel` → `dial`. `patience`,
//! `probes`, `rate_bucket`, `modes` and `survey` use some of these; the other files (keys, scripts, values, errors) import none.

mod claim;
mod cluster;
mod connector;
mod deferred;
mod dial;
mod dial_pace;
mod ending;
mod error;
mod handle;
mod index;
mod keeper;
mod keys;
mod lease;
mod log;
mod modes;
mod node;
mod patience;
mod pool;
mod probes;
mod rate_bucket;
mod refusal;
mod scripts;
mod seal;
mod sentinel;
mod survey;
mod value;
mod writes;

#[cfg(test)]
pub(crate) mod test_redis;
#[cfg(test)]
mod tests;

#[cfg(test)]
#[cfg(feature = "fleet")]
pub(crate) use self::rate_bucket::BucketShape;
#[doc(hidden)]
pub use self::seal::Seal;
pub(crate) use self::{
    claim::{Claim, Freshness, StoredLink, UnansweredClaim},
    dial::Address,
    ending::{Ended, Forgotten},
    keys::{LinkId, Stamp},
    lease::{Lease, Overwrite, StoreOutcome},
    modes::{ClusterView, cluster_view, sentinel_opinions},
    patience::Patience,
    probes::{Probes, TakenPermit, WantedPermit},
    rate_bucket::RateBucket,
    survey::{RefusedCommand, survey},
};
pub use self::{error::CacheError, handle::Cache, keys::Keys, refusal::Refusal};
