//! A RabbitMQ or Redis that one test kills, freezes and restarts.

use std::path::PathBuf;

use tokio::process::Command;

/// A server in a separate folder. Destroyed when it is dropped.
pub struct Node {
    script: PathBuf,
    dir: PathBuf,
    pub url: String,
}

impl Node {
    pub async fn rabbitmq() -> Self {
        Self::new("rabbitmq-node").await
    }

    pub async fn redis() -> Self {
        Self::new("redis-node").await
    }

    async fn new(script: &str) -> Self {
        let name = format!("handoff-test-{}", uuid::Uuid::new_v4().simple());
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
        let mut node = Self { script, dir: std::env::temp_dir().join(name), url: String::new() };
        node.url = node.start().await;
        node
    }

    /// Starts it on its port, again if need be, and waits until it is ready.
    pub async fn start(&self) -> String {
        self.run(&["start"]).await
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) {
        self.run(&["kill"]).await;
    }

    /// Shuts it down gracefully.
    pub async fn stop(&self) {
        self.run(&["stop"]).await;
    }

    /// Sends SIGSTOP.
    pub async fn freeze(&self) {
        self.run(&["freeze"]).await;
    }

    /// Sends SIGCONT.
    pub async fn thaw(&self) {
        self.run(&["thaw"]).await;
    }

    /// Runs `rabbitmqctl` against it, and returns its output.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut ctl = Command::new(&self.script);
        let output = ctl.arg("ctl").arg(&self.dir).args(arguments).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn run(&self, command: &[&str]) -> String {
        let output =
            Command::new(&self.script).args(command).arg(&self.dir).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} {}: {stderr}", self.script.display());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let destroyed =
            std::process::Command::new(&self.script).arg("destroy").arg(&self.dir).status();
        assert!(destroyed.is_ok() || std::thread::panicking());
    }
}
