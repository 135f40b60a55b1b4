//! A worker's readiness and pauses over time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::support::{Worker, log_text};

/// Samples `/readyz` every 50 ms until dropped.
pub struct ReadinessLog {
    samples: Arc<Mutex<Vec<(Instant, u16)>>>,
    sampling: JoinHandle<()>,
}

impl ReadinessLog {
    pub async fn start(worker: &Worker) -> Self {
        let line = worker.wait_for_log(log_text::SERVING_HTTP).await;
        let url = format!("http://{}/readyz", line["addr"].as_str().unwrap());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let samples = Arc::<Mutex<Vec<_>>>::default();
        let sampling = {
            let samples = Arc::clone(&samples);
            tokio::spawn(async move {
                while let Ok(response) = client.get(&url).send().await {
                    samples.lock().unwrap().push((Instant::now(), response.status().as_u16()));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        };
        Self { samples, sampling }
    }

    /// Asserts that every sample since then has this status.
    pub fn assert_since(&self, since: Instant, status: u16) {
        let samples = self.samples.lock().unwrap();
        let mut counts = BTreeMap::<u16, usize>::new();
        for (_, status) in samples.iter().filter(|(at, _)| *at > since) {
            *counts.entry(*status).or_default() += 1;
        }
        assert!(!counts.is_empty(), "no sample");
        assert!(counts.keys().all(|seen| *seen == status), "not always {status}: {counts:?}");
    }
}

impl Drop for ReadinessLog {
    fn drop(&mut self) {
        self.sampling.abort();
    }
}

/// How often the worker's circuit breaker opened before and after it first served a request.
pub fn pauses_around_first_success(worker: &Worker) -> (usize, usize) {
    let output = worker.output();
    let lines: Vec<Value> =
        output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let served = |line: &Value| {
        line["message"] == log_text::REQUEST_FINISHED
            && (line["outcome"] == "ready" || line["outcome"] == "reused")
    };
    let first = lines.iter().position(served).unwrap_or(lines.len());
    let pauses = |lines: &[Value]| {
        lines.iter().filter(|line| line["message"] == log_text::BREAKER_OPEN).count()
    };
    (pauses(&lines[..first]), pauses(&lines[first..]))
}
