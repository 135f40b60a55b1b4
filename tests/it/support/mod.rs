//! What every test stands on.

pub mod bench;
pub mod browser;
pub mod collector;
pub mod log_text;
pub mod node;
pub mod platform;
pub mod proxy;
pub mod rabbit;
pub mod raw_platform;
pub mod tls;
pub mod worker;

pub use bench::Bench;
pub use browser::Browser;
pub use collector::Collector;
pub use node::Node;
pub use platform::{Answer, Latch, Platform};
pub use proxy::{Flow, Proxy};
pub use rabbit::{Message, Rabbit};
pub use tls::{Authority, TlsFront};
pub use worker::Worker;

use std::{path::PathBuf, time::Duration};

/// Longest time anything here may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A setting of the test run.
pub fn required_env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `make test`, which provides RabbitMQ, Redis and a browser for the tests")
    })
}

/// Waits for something that is expected to happen.
pub async fn soon<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Waits until something is so that only asking can tell.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, asking).await;
}

/// A file that is there for as long as a test needs it.
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
