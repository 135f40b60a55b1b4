//! Waiting for what a test expects, with a limit.

use std::time::Duration;

/// The longest that anything expected here may take.
pub const TIMEOUT: Duration = Duration::from_secs(60);

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
