//! Two workers, one of which is killed and replaced.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{TestEnv, Worker};

pub struct Workers {
    running: Vec<Worker>,
    killed: Vec<Worker>,
}

/// When a worker had finished an ending: right after it had queued the ack for its channel.
#[derive(Clone, Debug)]
pub struct Finished {
    pub at: OffsetDateTime,
    pub outcome: String,
}

impl Workers {
    pub async fn start(env: &TestEnv) -> Self {
        let running = vec![env.start_worker().await, env.start_worker().await];
        env.wait_for_consumer_of_endings().await;
        Self { running, killed: Vec::new() }
    }

    /// Kills a worker, and starts another.
    pub async fn kill_one(&mut self, env: &TestEnv) {
        let mut worker = self.running.remove(0);
        worker.signal("KILL");
        worker.wait_for_exit().await;
        self.killed.push(worker);
        self.running.push(env.start_worker().await);
    }

    /// When each ending was finished, by its id: for the last time, if it was redelivered.
    pub fn finished(&self) -> HashMap<String, Finished> {
        let mut finished: HashMap<String, Finished> = HashMap::new();
        for worker in self.killed.iter().chain(&self.running) {
            for line in worker.log_lines("ending finished") {
                let text = |name: &str| line[name].as_str().unwrap().to_owned();
                let at = OffsetDateTime::parse(&text("timestamp"), &Rfc3339).unwrap();
                let ending = Finished { at, outcome: text("outcome") };
                let last = finished.entry(text("request_id")).or_insert_with(|| ending.clone());
                if last.at < at {
                    *last = ending;
                }
            }
        }
        finished
    }

    /// How often each warning and error was logged.
    pub fn warnings(&self) -> BTreeMap<String, usize> {
        let mut warnings = BTreeMap::new();
        for worker in self.killed.iter().chain(&self.running) {
            let output = worker.output();
            let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            for line in lines.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR") {
                let text = line["message"].as_str().unwrap().to_owned();
                *warnings.entry(text).or_default() += 1;
            }
        }
        warnings
    }

    /// Writes each worker's log to a file, that of the killed one first.
    pub fn save_logs(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for (number, worker) in self.killed.iter().chain(&self.running).enumerate() {
            std::fs::write(folder.join(format!("worker-{number}.log")), worker.output()).unwrap();
        }
    }

    pub async fn stop(self) {
        for worker in self.running {
            worker.stop().await;
        }
    }
}
