//! The worker from outside: the real binary, a real RabbitMQ, a real Redis, a real browser.
//!
//! `make test` provides them; without them every test fails, none is skipped. Each test has names of
//! its own on RabbitMQ and Redis, so that all can run side by side, and takes them away at its end.

#![allow(unreachable_pub, reason = "everything in here is this binary's own")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

mod broker_faults;
mod browser;
mod cache;
mod commands;
mod configuration;
mod crash;
mod dead_letters;
mod dependencies;
mod doctor;
mod expiry;
mod gate;
mod hostile;
mod imports;
mod invalid_requests;
mod links;
mod logs;
mod metrics;
mod platform_faults;
mod publishing;
mod rate;
mod redis_faults;
mod rejections;
mod retries;
mod rights;
mod schema;
mod secrets;
mod shutdown;
mod terminal;
mod tls;
mod topology;
mod traces;
