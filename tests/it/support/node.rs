//! A RabbitMQ or Redis that one test kills, freezes and restarts.

use std::{net::SocketAddr, path::PathBuf};

use tokio::process::Command;

use super::test_run::required_env;

/// A server in a separate folder. Destroyed when it is dropped, unless something else owns it.
pub struct Node {
    script: PathBuf,
    dir: PathBuf,
    pub url: String,
    is_owned: bool,
}

impl Node {
    pub async fn rabbitmq() -> Self {
        Self::rabbitmq_with(&[]).await
    }

    /// A RabbitMQ with these lines of `rabbitmq.conf`.
    pub async fn rabbitmq_with(lines: &[&str]) -> Self {
        Self::new("rabbitmq-node", lines).await
    }

    /// A RabbitMQ that something else has started and will destroy.
    pub fn running_rabbitmq(dir: PathBuf, url: String) -> Self {
        Self { script: script("rabbitmq-node"), dir, url, is_owned: false }
    }

    pub async fn redis() -> Self {
        Self::redis_with(&[]).await
    }

    /// A Redis with these options of `redis-server`.
    pub async fn redis_with(options: &[&str]) -> Self {
        Self::new("redis-node", options).await
    }

    /// The RabbitMQ that all tests share: a test may change there only what bears its name.
    pub fn shared_rabbitmq() -> Self {
        let dir = PathBuf::from(required_env("HANDOFF_SERVICES_DIR")).join("rabbitmq");
        Self::running_rabbitmq(dir, required_env("HANDOFF_AMQP_URL"))
    }

    async fn new(name: &str, options: &[&str]) -> Self {
        let dir = format!("handoff-test-{}", uuid::Uuid::new_v4().simple());
        let mut node = Self {
            script: script(name),
            dir: std::env::temp_dir().join(dir),
            url: String::new(),
            is_owned: true,
        };
        node.url = node.run_with("start", options).await;
        node
    }

    /// Starts it on its port, again if need be, and waits until it is ready.
    pub async fn start(&self) -> String {
        self.run("start").await
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) {
        self.run("kill").await;
    }

    /// Shuts it down gracefully.
    pub async fn stop(&self) {
        self.run("stop").await;
    }

    /// Sends SIGSTOP.
    pub async fn freeze(&self) {
        self.run("freeze").await;
    }

    /// Sends SIGCONT.
    pub async fn thaw(&self) {
        self.run("thaw").await;
    }

    /// Runs `rabbitmqctl` against it, and returns its output.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let mut ctl = Command::new(&self.script);
        output(ctl.arg("ctl").arg(&self.dir).args(arguments)).await
    }

    /// Cancels a queue's consumer in its state machine, without a `basic.cancel` to the worker.
    pub async fn forget_consumer(&self, queue: &str) {
        let forget = format!(
            r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
            [C | _] = rabbit_amqqueue:consumers(Q), Consumer = {{element(2, C), element(1, C)}},
            Cancel = rabbit_fifo:make_checkout(Consumer, cancel, #{{}}),
            {{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q), Cancel)."#
        );
        self.ctl(&["eval", &forget]).await;
    }

    /// How many messages of a quorum queue are neither acked nor dead-lettered.
    pub async fn messages_in(&self, queue: &str) -> usize {
        self.query(queue, "query_messages_total").await
    }

    /// How many of them are delivered and not settled.
    pub async fn unsettled_in(&self, queue: &str) -> usize {
        self.query(queue, "query_messages_checked_out").await
    }

    /// Asks the queue itself: the numbers in `list_queues` are up to 5 s old (`quorum_tick_interval`).
    async fn query(&self, queue: &str, query: &str) -> usize {
        let query = format!(
            "{{ok, {{_, Count}}, _}} = \
             ra:local_query({{'%2F_{queue}', node()}}, fun rabbit_fifo:{query}/1), Count."
        );
        self.ctl(&["eval", &query]).await.trim().parse().unwrap()
    }

    /// A file or folder in its folder, where Redis would write a snapshot.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        url::Url::parse(&self.url).unwrap().socket_addrs(|| None).unwrap()[0]
    }

    /// Whether Docker runs it: its ports were then all chosen when it started.
    pub fn is_in_docker(&self) -> bool {
        let settings = std::fs::read_to_string(self.dir.join("settings")).unwrap();
        settings.contains("engine=docker")
    }

    /// Adds a RabbitMQ user with all permissions, and returns the URL to log in with.
    pub async fn add_user(&self, user: &str, password: &str) -> String {
        self.ctl(&["add_user", user, password]).await;
        self.ctl(&["set_permissions", user, ".*", ".*", ".*"]).await;
        self.url_as(user, password)
    }

    /// The URL for a user and a password.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url.replace("guest:guest", &format!("{user}:{password}"))
    }

    /// Runs one of the script's commands for it.
    pub async fn run(&self, command: &str) -> String {
        self.run_with(command, &[]).await
    }

    async fn run_with(&self, command: &str, options: &[&str]) -> String {
        let mut script = Command::new(&self.script);
        let output = output(script.arg(command).arg(&self.dir).args(options)).await;
        output.trim().to_owned()
    }
}

/// The standard output of a command, which must succeed.
pub async fn output(command: &mut Command) -> String {
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// One of the project's scripts.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.is_owned {
            return;
        }
        let destroyed =
            std::process::Command::new(&self.script).arg("destroy").arg(&self.dir).status();
        assert!(destroyed.is_ok() || std::thread::panicking());
    }
}
