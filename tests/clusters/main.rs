//! `make test-clusters`: fail-overs of real clusters of RabbitMQ and of Redis.
//!
//! It is not one of the tests, since starting clusters and failing over takes minutes.
//! The tests run one at a time, because most of them measure time.

#![allow(unreachable_pub, reason = "nothing imports a test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod endings;
mod load;
mod rabbitmq;
mod redis_cluster;
mod redis_sentinel;
mod redis_servers;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
mod support;
