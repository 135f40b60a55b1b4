//! The vocabulary of the gate's rules.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use tokio::time::Instant;

use crate::session::Call;

/// The user and workflow of a call; all their requests are one caller.
///
/// Both fields are hashes. If two hashes collide, the rules treat two users or workflows as one, which is
/// harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// The user and the workflow.
    pub(super) id: u64,
    pub(super) workflow: u64,
}

impl Caller {
    /// The caller of the probes that the worker sends while it holds no request.
    pub(super) const IDLE: Self = Self { id: 0, workflow: 0 };

    pub(super) fn new(user_id: &str, workflow_id: &str) -> Self {
        let mut hash = DefaultHasher::new();
        workflow_id.hash(&mut hash);
        let workflow = hash.finish();
        user_id.hash(&mut hash);
        Self { id: hash.finish().max(1), workflow }
    }
}

/// How a call ended, as far as the rules distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    /// The platform did what it was asked for.
    Success,
    /// The platform works, and rejected the request.
    Rejected,
    /// A transient failure without a `Retry-After`.
    Failure,
    /// No answer in time.
    Timeout,
    /// No connection to the platform: the same for every request.
    Unreachable,
    /// The platform closed the connection, which servers do in normal operation, too.
    Closed,
    /// The platform works, and wants no calls for this long (429).
    RateLimited(Duration),
    /// The platform fails, and wants no calls for this long (503).
    Unavailable(Duration),
    /// The platform refused the call that carries the API key: the key or the URL is wrong.
    Refused(Refusal),
}

/// What a refusal may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The key or the URL, whatever the request is. Any refused token call is this.
    Setting,
    /// A 403 of the one-call flow: the key, or the workflow.
    Forbidden,
    /// A 404 of the one-call flow: the URL, or the workflow.
    Missing,
}

/// What a caller that wants to call must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Call now.
    Proceed,
    /// Call now, as a probe of the open circuit breaker.
    Probe,
    /// Ask again at this time, or earlier if the state changes.
    WaitUntil(Instant),
    /// Call as a probe once the replicas' shared permit is there, or at this time by itself.
    AwaitPermit { until: Instant },
    /// Ask again when the state changes.
    Wait,
}

impl Decision {
    pub(super) fn allows_call(self) -> bool {
        matches!(self, Self::Proceed | Self::Probe)
    }
}

/// What a failed call says about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureScope {
    /// Nothing: calls were paused when this one began or when it ended.
    Pause,
    /// The platform wants no calls for this request for a while, and serves others.
    Deferred,
    /// Nothing yet: it may be part of an outage, which later failures may prove.
    Undecided,
    /// The request is at fault: the platform serves others.
    Request,
}

/// A change of the circuit breaker, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The breaker opened, or was open for another cause until now.
    Opened(Cause),
    /// A token call succeeded while session calls fail and no request was there to probe: the next request
    /// is the probe.
    HalfOpened,
    /// No request is held: the next one is the probe.
    HalfOpenedForNext,
    /// The platform has answered another replica well: the next request is the probe.
    HalfOpenedAfterAnswer,
    /// That probe failed.
    Reopened,
    /// A probe succeeded, so the breaker closed.
    Closed,
    /// One request failed several probes in a row while no other waited: the platform may well serve the
    /// others, so the breaker closed.
    ClosedForOthers,
}

/// Why the circuit breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// This call fails for several requests.
    Down(Call),
    /// The platform refuses this call, which carries the API key: the key or the URL is wrong.
    Refused(Call),
}
