//! Turns verification requests on RabbitMQ into short-lived identity-verification links.
//!
//! This library is the inside of the `handoff` program, not a stable API. Users rely on
//! `docs/reference`; `ARCHITECTURE.md` explains the design. Modules are public only where
//! `main.rs`, the tests, the benches or the fuzz targets use them.
//!
//! A request flows one way: delivery, request, platform calls, cache entry, event, settlement.
//! Imports follow the same direction, from the top of this table to the bottom:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`cli`] | parses the command line and runs one command |
//! | [`worker`] | consumes deliveries, publishes their events, settles them, drains on shutdown |
//! | `handoff` | obtains a link for one request: claim, token, session, store |
//! | [`platform`] | calls the platform, builds the link, pauses while the platform fails |
//! | [`cache`] | stores links, tokens and leases in Redis |
//! | [`broker`] | connects to RabbitMQ, consumes, publishes, settles, declares the topology |
//! | [`message`] | defines the wire types: requests and events |
//! | [`session`], `retry`, `hash` | hold types and functions that several of the modules above share |
//! | [`config`] | parses settings from flags and environment variables |
//! | [`telemetry`], `health` | export logs, metrics and traces; serve the probes |
//! | `tls`, `printable` | explain TLS errors; make texts of other programs safe for terminals |
//!
//! These modules serve commands other than `handoff run`:
//!
//! | module | what it does |
//! | --- | --- |
//! | `client` | publishes requests and receives events, for `request` and `demo` |
//! | `doctor` | checks the settings, RabbitMQ, Redis and the platform |
//! | `sandbox` | simulates the platform; in builds with the feature `sandbox` |
//! | `schema` | generates the AsyncAPI document |

#![forbid(unsafe_code)]
// The commands `demo` and `sandbox` are the only users of some functions.
#![cfg_attr(not(feature = "sandbox"), allow(dead_code, unused_imports))]
// These macros panic where stdout or stderr is closed or full.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod broker;
pub mod cache;
pub mod cli;
pub(crate) mod client;
pub mod config;
pub(crate) mod doctor;
mod error_chain;
// cargo-fuzz sets `fuzzing`.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[path = "../fuzz/checks.rs"]
pub mod fuzzing;
// `make fleet` runs it.
#[cfg(test)]
#[cfg(feature = "fleet")]
#[path = "../benches/fleet/mod.rs"]
mod fleet;
pub(crate) mod handoff;
pub(crate) mod hash;
pub(crate) mod health;
pub mod message;
pub mod platform;
pub(crate) mod printable;
#[cfg(test)]
mod rate_model;
pub(crate) mod retry;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub(crate) mod schema;
pub mod session;
pub mod telemetry;
pub(crate) mod tls;
mod units;
pub mod worker;
