//! What the tests share.

pub mod browser;
pub mod collector;
pub mod log_text;
pub mod node;
pub mod platform;
pub mod proxy;
pub mod rabbitmq;
pub mod raw_platform;
pub mod redis;
pub mod test_env;
pub mod tls;
pub mod worker;

pub use browser::Browser;
pub use collector::Collector;
pub use node::Node;
pub use platform::{Answer, Latch, Platform};
pub use proxy::{Flow, Proxy};
pub use rabbitmq::{Message, RabbitMq};
pub use test_env::TestEnv;
pub use tls::{Authority, TlsProxy};
pub use worker::Worker;

use std::{path::PathBuf, time::Duration};

/// The longest that anything expected here may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A variable that the test run's environment must have.
pub fn required_env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, which provides RabbitMQ, Redis and a browser for the tests")
    })
}

/// Waits for a future, and fails the test if it takes longer than [`TIMEOUT`].
pub async fn within_timeout<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: did not happen within {TIMEOUT:?}"),
    }
}

/// Polls a condition every 20 ms until it holds.
pub async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within_timeout(what, polling).await;
}

/// A file that is deleted when it is dropped.
pub struct TempFile(PathBuf);

impl TempFile {
    pub fn new(content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("handoff-test-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
