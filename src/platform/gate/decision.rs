//! The vocabulary of the gate's rules.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::Call;

/// Identifies the request that makes a call; the same for each redelivery.
pub(super) type Caller = u64;

/// The caller of the probes that the worker sends while no request waits.
pub(super) const IDLE_CALLER: Caller = 0;

/// How a call ended, as far as the rules distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallResult {
    /// The platform works, even if it rejected the request.
    Success,
    /// A transient failure without a `Retry-After`.
    Failure,
    /// The platform works, and wants no calls for this long (429).
    RateLimited(Duration),
    /// The platform fails, and wants no calls for this long (503).
    Unavailable(Duration),
    /// The platform refused the token call: the API key or the URL is wrong.
    Refused,
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
    /// Ask again when the state changes.
    Wait,
}

impl Decision {
    pub(super) fn allows_call(self) -> bool {
        matches!(self, Self::Proceed | Self::Probe)
    }
}

/// A change of the circuit breaker, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The breaker opened, or was open for another cause until now.
    Opened(Cause),
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
    /// The platform refuses the token call: the API key or the URL is wrong.
    Refused,
}
