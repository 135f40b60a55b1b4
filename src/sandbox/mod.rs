//! A simulated platform, for demos, for tests, and for trying the worker out.
//!
//! It serves the two calls of the platform and shows the two pages a person meets, `/capture` and
//! `/mobile`. It can be slow, fail, or answer nonsense on demand ([`Faults`]), and it remembers
//! what it was asked ([`CallRecord`]). It keeps everything in memory and checks nobody's identity.

mod api;
mod ask;
mod connection;
mod control;
mod escapes;
mod fault_json;
mod faults;
mod gate;
mod inner_link;
mod mint;
mod options;
mod pages;
mod platform;
mod record;
mod routes;
mod server;
mod stats;
mod tokens;

pub use faults::{Answer, Fault, Faults};
pub use options::{Options, RateLimit, TokenAlphabet};
pub use record::{Call, CallRecord};
pub use server::Sandbox;
pub use stats::{CallCounts, PairSessions, Stats};

#[cfg(test)]
mod tests;
