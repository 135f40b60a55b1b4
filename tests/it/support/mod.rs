//! What every test stands on.

pub mod bench;
pub mod platform;
pub mod rabbit;
pub mod worker;

pub use bench::Bench;
pub use platform::{Answer, Platform};
pub use rabbit::Rabbit;
pub use worker::Worker;

use std::time::Duration;

/// Longest time anything here may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A setting of the test run.
pub fn required_env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, which starts RabbitMQ and Redis for the tests")
    })
}

/// Waits for something that is expected to happen.
pub async fn soon<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}
