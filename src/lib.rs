//! Turns verification requests on RabbitMQ into short-lived identity-verification links.
//!
//! The program is `handoff`; this library is what it is made of, and makes no promise of its own: what
//! others may rely on is the reference, `docs/reference.md`. `ARCHITECTURE.md` is the map of the house.
//!
//! | module | |
//! | --- | --- |
//! | [`cli`] | the commands |
//! | [`worker`] | the run: consume, bound, hand over, settle, drain |
//! | [`handoff`] | the use case: claim, token, session, link, store, tell |
//! | [`platform`] | the two calls and the handoff URL |
//! | [`cache`] | Redis: links, tokens, leases |
//! | [`broker`] | RabbitMQ: connections, topology, deliveries, publishing, settling |
//! | [`message`] | the wire types |
//! | [`config`], [`retry`], [`hash`], [`session`] | settings, delays, and what the rest has in common |
//! | [`health`], [`telemetry`] | probes, logs, metrics, traces |
//! | [`tls`] | what is wrong with a TLS connection, in words of our own |
//! | [`client`] | the other side of the queue: publish requests, hear events |
//! | [`sandbox`] | the simulated platform |
//! | [`doctor`] | what is wrong with the settings and the servers around a worker |
//! | [`schema`] | the AsyncAPI document |

#![forbid(unsafe_code)]

pub mod broker;
pub mod cache;
pub mod cli;
pub mod client;
pub mod config;
pub mod doctor;
#[doc(hidden)]
pub mod fuzzing;
pub mod handoff;
pub mod hash;
pub mod health;
pub mod message;
pub mod platform;
pub mod retry;
pub mod sandbox;
pub mod schema;
pub mod session;
pub mod telemetry;
pub mod tls;
pub mod worker;
