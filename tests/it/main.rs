//! Black-box tests: the real binary with a real RabbitMQ, a real Redis and a real browser.
//!
//! `make test` provides them; without them tests fail instead of being skipped. Each test uses unique
//! names on the shared RabbitMQ and Redis, so that tests can run in parallel, and deletes them at its
//! end. Texts that tests await in the worker's output are in `support/log_text.rs`.

#![allow(unreachable_pub, reason = "nothing imports a test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod stuck_retries;
mod support;

mod broker_faults;
mod browser;
mod cache;
mod certificates;
mod client_cert;
mod commands;
mod configuration;
mod crash;
mod dead_letters;
mod deeplink;
mod dependencies;
mod distant_redis;
mod docs;
mod doctor;
mod doctor_families;
mod doctor_platform;
mod endings;
mod endings_queue;
mod expiry;
mod forget;
mod gate;
mod healthcheck;
mod hostile;
mod imports;
mod invalid_requests;
mod large_messages;
mod lifetimes;
mod link_order;
mod links;
mod logs;
mod metrics;
mod odd_answers;
mod other_stacks;
mod output;
mod platform_faults;
mod proxies;
mod publishing;
mod queue_depths;
mod rate;
mod redis_faults;
mod redis_modes;
mod redis_patience;
mod redis_refusals;
mod redis_scripts;
mod rejections;
mod release;
mod repeated_calls;
mod retries;
mod rights;
mod rotation;
mod schema;
mod secrets;
mod server_texts;
mod shutdown;
mod systemd;
mod terminal;
mod tls;
mod topology;
mod traces;
mod webhook;
