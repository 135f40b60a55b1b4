//! The gate: requests that are held while the platform is paused.

mod breaker;
pub mod checks;
mod conflict;
mod delivery_limit;
mod fleet;
mod held_requests;
mod one_workflow;
mod readiness;
mod refusals;
mod retry_after;
mod rotation;
mod session_outage;
mod traffic;
mod unanswered;
