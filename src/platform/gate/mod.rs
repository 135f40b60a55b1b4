//! The gate in front of every call to the platform: circuit breaker, `Retry-After`, slow start.
//!
//! While calls are pointless, because the platform is down, asked for a pause or refuses the API key,
//! the gate holds requests back. A waiting request keeps its place and spends neither an attempt nor a
//! call; one request at a time probes whether the platform works again. The rules are in `state`. A call
//! that they allow then waits for a permit of the rate limit that all replicas share (`rate_limit`).

mod breaker;
mod caller_memory;
mod decision;
mod deferrals;
mod evidence;
mod fleet;
mod held;
mod log;
mod paused_clock;
mod permit;
mod probe_permits;
mod refusals;
mod refused;
mod room;
mod shared;
mod slow_start;
mod state;
mod streak;
#[cfg(test)]
mod tests;
mod ticket;

pub(crate) use self::{
    decision::FailureScope,
    permit::{CallPermit, FailedCall},
    probe_permits::{PermitKind, ProbeReply, ProbeRequest, SharedProbes},
    room::{Place, Room},
    shared::Gate,
    ticket::Ticket,
};
