//! The real binary in its own process.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::{
    TempFile, log_text,
    wait::{TIMEOUT, wait_until, within_timeout},
};

/// The operating system's resources that a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    threads: usize,
    /// Sockets to one server.
    sockets: usize,
    memory_kib: usize,
}

impl Resources {
    /// The same with more sockets, for a client that keeps idle connections for a while.
    pub fn plus_sockets(self, more: usize) -> Self {
        Self { sockets: self.sockets + more, ..self }
    }
}

/// A `handoff run` under test. Killed when it is dropped.
pub struct Worker {
    child: Child,
    output: Arc<Mutex<Vec<String>>>,
    line_count: watch::Receiver<usize>,
    http: tokio::sync::OnceCell<String>,
}

/// Environment variables of a process.
pub type Settings = BTreeMap<String, String>;

/// A command of the binary with these settings, and with none of the test run's own.
pub fn command(arguments: &[&str], settings: &Settings) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command.args(arguments);
    set_up(&mut command, settings);
    command
}

fn set_up(command: &mut Command, settings: &Settings) {
    command.kill_on_drop(true).stdin(Stdio::null());
    let is_own =
        |name: &str| name.starts_with("HANDOFF_") || name.to_ascii_uppercase().ends_with("_PROXY");
    for (name, _) in std::env::vars().filter(|(name, _)| is_own(name)) {
        command.env_remove(name);
    }
    command.envs(settings);
}

/// Runs a command of the binary until it exits.
pub async fn run(arguments: &[&str], settings: &Settings) -> Output {
    within_timeout("its exit", command(arguments, settings).output()).await.unwrap()
}

/// Sends a process a signal.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap();
    assert!(sent.success());
}

impl Worker {
    /// Starts a worker without waiting for anything.
    pub fn start(settings: &Settings) -> Self {
        Self::start_with(&[], settings)
    }

    /// The same, with flags.
    pub fn start_with(flags: &[&str], settings: &Settings) -> Self {
        Self::start_command(command(&[&["run"], flags].concat(), settings))
    }

    /// Starts a worker whose host has these lines in `/etc/hosts`, in a user and mount namespace.
    pub fn start_with_hosts(hosts: &TempFile, settings: &Settings) -> Self {
        let unshare = |arguments: &[&str]| {
            let mut command = std::process::Command::new("unshare");
            command.args(["--map-root-user", "--mount", "--"]).args(arguments);
            command
        };
        let permitted = unshare(&["true"]).status().is_ok_and(|status| status.success());
        assert!(
            permitted,
            "this test needs `unshare --map-root-user --mount`, which is not permitted here"
        );
        let script = "mount --bind \"$0\" /etc/hosts && exec \"$1\" run";
        let binary = env!("CARGO_BIN_EXE_handoff");
        let mut command = Command::from(unshare(&["sh", "-c", script, hosts.path(), binary]));
        set_up(&mut command, settings);
        Self::start_command(command)
    }

    /// Starts another command that runs until a signal, such as a sandbox.
    pub fn start_command(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let output = Arc::new(Mutex::new(Vec::new()));
        let (count, line_count) = watch::channel(0);
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines = Arc::clone(&output);
        tokio::spawn(async move {
            let keep = |line| {
                lines.lock().unwrap().push(line);
                count.send_modify(|count| *count += 1);
            };
            while let Ok(Some(line)) = stderr.next_line().await {
                keep(line);
            }
            // A worker prints nothing here, so it cannot block on a full pipe before stderr ends.
            while let Ok(Some(line)) = stdout.next_line().await {
                keep(line);
            }
        });
        Self { child, output, line_count, http: tokio::sync::OnceCell::new() }
    }

    /// Starts a worker and waits until it consumes.
    pub async fn start_consuming(settings: &Settings) -> Self {
        let worker = Self::start(settings);
        worker.wait_for_log(log_text::CONSUMING).await;
        worker
    }

    /// Everything it has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().join("\n")
    }

    /// The log lines with this message so far.
    pub fn log_lines(&self, message: &str) -> Vec<Value> {
        let output = self.output.lock().unwrap();
        let json = output.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        json.filter(|line| line["message"] == message).collect()
    }

    /// Waits until it has logged a message `times` times, and returns the last of these lines.
    pub async fn wait_for_logs(&self, message: &str, times: usize) -> Value {
        let mut line_count = self.line_count.clone();
        let waiting = async {
            loop {
                if let Some(line) = self.log_lines(message).into_iter().nth(times - 1) {
                    return line;
                }
                let more = line_count.changed().await;
                more.unwrap_or_else(|_| panic!("the worker exited:\n{}", self.output()));
            }
        };
        match tokio::time::timeout(TIMEOUT, waiting).await {
            Ok(line) => line,
            Err(_) => panic!("never logged `{message}` {times} times:\n{}", self.output()),
        }
    }

    /// Waits until it has logged a message, and returns the line.
    pub async fn wait_for_log(&self, message: &str) -> Value {
        self.wait_for_logs(message, 1).await
    }

    /// Waits until it has logged a message with matching fields.
    pub async fn wait_for_log_with(
        &self,
        message: &str,
        matches: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut found = None;
        wait_until(message, async || {
            found = self.log_lines(message).into_iter().find(&matches);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Waits until it has finished `deliveries`, and returns the line of the last. By then their links are in the
    /// index, unlike when their events arrive.
    pub async fn wait_for_finished(&self, deliveries: usize) -> Value {
        self.wait_for_logs(log_text::REQUEST_FINISHED, deliveries).await
    }

    /// Gets a page from its HTTP address: the status and the body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let base = self.http.get_or_init(|| async {
            let line = self.wait_for_log(log_text::SERVING_HTTP).await;
            format!("http://{}", line["addr"].as_str().unwrap())
        });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = client.get(format!("{}{path}", base.await)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// The value of one series, written with its labels as in Prometheus' text format.
    pub async fn metric(&self, series: &str) -> f64 {
        self.series(series).await.unwrap_or_else(|page| panic!("{series} is not in\n{page}"))
    }

    /// The same for a series that does not exist until it has counted something.
    pub async fn metric_or_zero(&self, series: &str) -> f64 {
        self.series(series).await.unwrap_or(0.0)
    }

    /// Whether a series exists.
    pub async fn has_metric(&self, series: &str) -> bool {
        self.series(series).await.is_ok()
    }

    async fn series(&self, series: &str) -> Result<f64, String> {
        let (_, page) = self.get("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap()).ok_or(page)
    }

    /// Waits until `count` requests are in flight.
    pub async fn wait_for_in_flight(&self, count: usize) {
        let what = format!("{count} in flight");
        wait_until(&what, async || self.metric("handoff_in_flight").await == count as f64).await;
    }

    /// Waits until exactly `count` endings have had this outcome.
    pub async fn wait_for_endings(&self, outcome: &str, count: usize) {
        let series = format!("handoff_endings_total{{outcome=\"{outcome}\"}}");
        let what = format!("endings that are {outcome}: {count}");
        wait_until(&what, async || self.metric(&series).await == count as f64).await;
    }

    /// The most memory that it has had resident.
    pub fn peak_memory_mib(&self) -> usize {
        let pid = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    }

    /// The resources it holds now, with its sockets to a server on this machine.
    pub fn resources(&self, server: SocketAddr) -> Resources {
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
        Resources { threads: list("task").count(), sockets, memory_kib }
    }

    /// Waits until it holds no more threads and sockets than `before`, and asserts that its memory
    /// has grown by less than 16 MiB.
    pub async fn assert_no_leak_since(&self, before: Resources, server: SocketAddr) {
        let mut now = self.resources(server);
        let released = async {
            while now.threads > before.threads || now.sockets > before.sockets {
                tokio::time::sleep(Duration::from_millis(50)).await;
                now = self.resources(server);
            }
        };
        let released = tokio::time::timeout(TIMEOUT, released).await;
        assert!(released.is_ok(), "{now:?} after {before:?}");
        assert!(now.memory_kib < before.memory_kib + 16 * 1024, "{now:?} after {before:?}");
    }

    /// Waits until it has at most this many sockets to a server.
    pub async fn wait_for_sockets(&self, at_most: usize, server: SocketAddr) {
        let what = format!("at most {at_most} sockets");
        wait_until(&what, async || self.resources(server).sockets <= at_most).await;
    }

    /// The status and the page of `/readyz`.
    pub async fn readiness(&self) -> (u16, Value) {
        let (status, page) = self.get("/readyz").await;
        (status, serde_json::from_str(&page).unwrap())
    }

    /// Asserts that `/livez` reports a turn of the worker's loop within the last 5 s.
    pub async fn assert_alive(&self) {
        let (status, page) = self.get("/livez").await;
        let last_turn = serde_json::from_str::<Value>(&page).unwrap()["lastTurnMs"].as_u64();
        assert!(status == 200 && last_turn.is_some_and(|ms| ms < 5_000), "{status} {page}");
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Stops it gracefully, and asserts that it exits with 0.
    pub async fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.wait_for_exit().await, Some(0));
    }

    /// Kills it, and waits until it has exited.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Stops it, and returns everything it printed.
    pub async fn stop_and_output(mut self) -> String {
        self.signal("TERM");
        self.wait_for_exit().await;
        let closed = async { while self.line_count.changed().await.is_ok() {} };
        within_timeout("the end of its output", closed).await;
        self.output()
    }

    /// Waits for its exit status.
    pub async fn wait_for_exit(&mut self) -> Option<i32> {
        within_timeout("the worker's exit", self.child.wait()).await.unwrap().code()
    }
}
