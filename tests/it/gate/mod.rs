//! The gate: requests that are held while the platform is paused.

mod breaker;
mod checks;
mod held_requests;
mod refusals;
