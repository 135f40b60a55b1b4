//! A simulated identity-verification platform, for demos and tests.
//!
//! The sandbox serves the platform's two API calls and the two pages that a link opens, `/capture`
//! and `/mobile`. It keeps its state in memory and checks no identity. Three things make it useful
//! in tests:
//!
//! - faults, set with `PUT /sandbox/faults`, make calls slow, fail, or return broken answers;
//! - `GET /sandbox/calls` and `GET /sandbox/stats` show what callers sent;
//! - a [hook](Sandbox::start_with_hook) takes over the answer to every API call.
//!
//! The public items serve this repository's tests and benchmarks; they carry no promise of
//! stability.

mod admission;
mod api;
mod app;
mod backend;
mod call;
mod connection;
mod control;
mod faults;
mod generate;
mod hook;
mod inner_link;
mod log;
mod options;
mod pages;
mod query;
mod record;
mod request;
mod routes;
mod server;
mod stats;
mod tokens;
mod webhook;

pub use call::{ApiCall, Endpoint};
pub use hook::Simulation;
pub use options::{Options, TokenAlphabet};
pub use server::Sandbox;
pub use stats::{CallCounts, SessionCount, Stats};
pub use webhook::Webhook;

#[cfg(test)]
mod tests;
