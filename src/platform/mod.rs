//! The identity-verification platform: its two calls, what their answers mean, the gate before them, and
//! the handoff URL.

pub(crate) mod answer;
mod client;
mod error;
mod gate;
mod key;
mod link;
mod rate_limit;

pub use self::{
    client::{ClientBuildError, PlatformClient, SessionCall},
    error::{CallError, Transient},
    gate::{CallPermit, Cause, FailedCall, Gate, Ticket},
    link::{encode_component, handoff_url},
    rate_limit::{BucketGrant, RateLimiter, ReplicaCount, SharedBucket},
};
