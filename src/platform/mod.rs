//! The identity-verification platform: its calls, the gate in front of them, and the handoff URL.

pub(crate) mod answer;
mod client;
mod connections;
pub(crate) mod deeplink;
mod error;
mod gate;
mod health;
mod key;
mod link;
mod proxy;
mod rate_limit;
mod repeat;

pub use self::{
    client::{ClientBuildError, PlatformClient},
    link::Links,
};
pub(crate) use self::{deeplink::Deeplink, health::health};
pub(crate) use self::{
    error::CallError,
    gate::{
        CallPermit, FailedCall, FailureScope, PermitKind, Place, ProbeReply, ProbeRequest, Room,
        SharedProbes, Ticket,
    },
    link::LinkBuilder,
    rate_limit::{BucketGrant, BucketRequest, RateLimiter, ReplicaCount, SharedBucket, Turn},
};
#[cfg(test)]
#[cfg(feature = "fleet")]
pub(crate) use self::{error::TransientCause, gate::Gate};
