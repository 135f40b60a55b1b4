//! The real binary as a process of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::{log_text, soon};

/// What a process holds of the system.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    threads: usize,
    /// Files that are sockets to the server in question.
    sockets: usize,
    memory_kib: usize,
}

impl Holdings {
    /// The same with more sockets, where a client may keep some for a while.
    pub fn and_sockets(self, more: usize) -> Self {
        Self { sockets: self.sockets + more, ..self }
    }
}

/// A `handoff run` under test. Killed when it is dropped.
pub struct Worker {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    lines: watch::Receiver<usize>,
    http: tokio::sync::OnceCell<String>,
}

/// The settings of a process: nothing else of the test run's own environment reaches it.
pub type Settings = BTreeMap<String, String>;

/// A command of the binary, with these settings and no other.
pub fn command(arguments: &[&str], settings: &Settings) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command.args(arguments).kill_on_drop(true).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HANDOFF_")) {
        command.env_remove(name);
    }
    command.envs(settings);
    command
}

/// Sends a process a signal.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    assert!(sent.success());
}

impl Worker {
    /// Starts it, and waits for nothing.
    pub fn start(settings: &Settings) -> Self {
        Self::start_with(&[], settings)
    }

    /// The same, with flags.
    pub fn start_with(flags: &[&str], settings: &Settings) -> Self {
        let mut child = command(&[&["run"], flags].concat(), settings)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (count, lines) = watch::channel(0);
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines_of = Arc::clone(&log);
        tokio::spawn(async move {
            let keep = |line| {
                lines_of.lock().unwrap().push(line);
                count.send_modify(|count| *count += 1);
            };
            while let Ok(Some(line)) = stderr.next_line().await {
                keep(line);
            }
            // Nothing belongs here, so nothing need be read any sooner.
            while let Ok(Some(line)) = stdout.next_line().await {
                keep(line);
            }
        });
        Self { child, log, lines, http: tokio::sync::OnceCell::new() }
    }

    /// Starts it, and waits until it consumes.
    pub async fn consuming(settings: &Settings) -> Self {
        let worker = Self::start(settings);
        worker.logged(log_text::CONSUMING).await;
        worker
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// The log lines with this message, so far.
    pub fn lines(&self, message: &str) -> Vec<Value> {
        let log = self.log.lock().unwrap();
        let json = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        json.filter(|line| line["message"] == message).collect()
    }

    /// Waits until it has logged a message so often.
    pub async fn logged_times(&self, message: &str, times: usize) -> Value {
        let mut lines = self.lines.clone();
        let waiting = async {
            loop {
                if let Some(line) = self.lines(message).into_iter().nth(times - 1) {
                    return line;
                }
                lines.changed().await.unwrap_or_else(|_| panic!("it ended:\n{}", self.log()));
            }
        };
        match tokio::time::timeout(super::PATIENCE, waiting).await {
            Ok(line) => line,
            Err(_) => panic!("never logged `{message}` {times} times:\n{}", self.log()),
        }
    }

    /// Waits until it has finished so many deliveries, and returns the line of the last.
    pub async fn finished(&self, times: usize) -> Value {
        self.logged_times(log_text::REQUEST_FINISHED, times).await
    }

    /// Waits until it has logged a message with more to it.
    pub async fn logged_with(&self, message: &str, has: impl Fn(&Value) -> bool) {
        super::until(message, async || self.lines(message).iter().any(&has)).await;
    }

    /// Waits until it has logged a message.
    pub async fn logged(&self, message: &str) -> Value {
        self.logged_times(message, 1).await
    }

    /// Gets a page from its probe address.
    pub async fn page(&self, path: &str) -> (u16, String) {
        let base = self.http.get_or_init(|| async {
            let line = self.logged(log_text::SERVING_HTTP).await;
            format!("http://{}", line["addr"].as_str().unwrap())
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client.get(format!("{}{path}", base.await)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The value of one metric, written with its labels as Prometheus text has it.
    pub async fn metric(&self, series: &str) -> f64 {
        self.series(series).await.unwrap_or_else(|page| panic!("{series} is not in\n{page}"))
    }

    /// The same for a series that is not there before it has counted anything.
    pub async fn metric_or_zero(&self, series: &str) -> f64 {
        self.series(series).await.unwrap_or(0.0)
    }

    async fn series(&self, series: &str) -> Result<f64, String> {
        let (_, page) = self.page("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap()).ok_or(page)
    }

    /// What it holds of the system at the moment, with the sockets to a server on this machine.
    pub fn holdings(&self, server: SocketAddr) -> Holdings {
        let proc = format!("/proc/{}", self.child.id().expect("it runs"));
        let read = |what| std::fs::read_to_string(format!("{proc}/{what}")).unwrap();
        let list = |what| std::fs::read_dir(format!("{proc}/{what}")).unwrap().flatten();
        let port = format!(":{:04X}", server.port());
        let connections = read("net/tcp");
        let connections =
            connections.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let inodes: Vec<_> = connections
            .filter(|fields| fields[2].ends_with(&port))
            .map(|fields| PathBuf::from(format!("socket:[{}]", fields[9])))
            .collect();
        let sockets = list("fd").filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let sockets = sockets.filter(|file| inodes.contains(file)).count();
        let status = read("status");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let memory_kib = memory.trim().trim_end_matches(" kB").parse().unwrap();
        Holdings { threads: list("task").count(), sockets, memory_kib }
    }

    /// Waits until it holds no more threads and sockets than before, and not much more memory.
    pub async fn holds_no_more_than(&self, before: Holdings, server: SocketAddr) {
        let mut now = self.holdings(server);
        let back = async {
            while now.threads > before.threads || now.sockets > before.sockets {
                tokio::time::sleep(Duration::from_millis(50)).await;
                now = self.holdings(server);
            }
        };
        let back = tokio::time::timeout(super::PATIENCE, back).await;
        assert!(back.is_ok(), "{now:?} after {before:?}");
        assert!(now.memory_kib < before.memory_kib + 16 * 1024, "{now:?} after {before:?}");
    }

    /// Asserts that `/livez` finds the loop turning.
    pub async fn is_alive(&self) {
        let (status, page) = self.page("/livez").await;
        let turned = serde_json::from_str::<Value>(&page).unwrap()["lastTurnMs"].as_u64();
        assert!(status == 200 && turned.is_some_and(|ms| ms < 5_000), "{status} {page}");
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Stops it in good order.
    pub async fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.ended().await, Some(0));
    }

    /// Kills it, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it, and returns everything it has ever printed.
    pub async fn printed(mut self) -> String {
        self.signal("TERM");
        self.ended().await;
        let closed = async { while self.lines.changed().await.is_ok() {} };
        soon("the end of its output", closed).await;
        self.log()
    }

    /// Waits for its end, and returns its exit status.
    pub async fn ended(&mut self) -> Option<i32> {
        soon("the worker's end", self.child.wait()).await.unwrap().code()
    }
}
