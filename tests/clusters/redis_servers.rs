//! A Redis Cluster of six nodes, or a primary with replicas and sentinels, that one test breaks.

use std::path::PathBuf;

use deadpool_redis::redis::{FromRedisValue, aio::MultiplexedConnection, cmd};
use serde_json::Value;
use tokio::process::Command;

use crate::support::{
    Authority, TempFile, TestEnv,
    node::{output, script},
    redis, wait_until,
    worker::run,
};

/// As in the reference, without those of a mode.
const PERMISSIONS: &str = "+ping +script|load +evalsha +get +getrange +strlen +set +setrange +del +exists +pttl +pexpire +time";

/// Several servers in one folder, started and destroyed together.
pub struct Servers {
    script: PathBuf,
    dir: PathBuf,
    /// What the script printed: the URLs that clients get, separated by commas.
    pub urls: String,
}

impl Servers {
    /// Starts six nodes of a Redis Cluster with these options.
    pub async fn cluster(options: &[&str]) -> Self {
        Self::start("redis-cluster", options, &[]).await
    }

    /// Starts a primary with two replicas, which get these options, and three sentinels.
    pub async fn sentinels(options: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start("redis-sentinels", options, environment).await
    }

    async fn start(name: &str, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let dir = format!("handoff-test-{}", uuid::Uuid::new_v4().simple());
        let mut servers =
            Self { script: script(name), dir: std::env::temp_dir().join(dir), urls: String::new() };
        let mut start = Command::new(&servers.script);
        start.arg("start").arg(&servers.dir).args(options).envs(environment.iter().copied());
        servers.urls = output(&mut start).await.trim().to_owned();
        servers
    }

    /// Adds a node without slots to the cluster.
    pub async fn add(&self) {
        let mut add = Command::new(&self.script);
        output(add.arg("add").arg(&self.dir)).await;
    }

    /// Moves slots of one node of the cluster to another.
    pub async fn move_slots(&self, from: &str, to: &str, slots: usize) {
        let [from_id, to_id] = [self.id(from).await, self.id(to).await];
        let address = self.address(from).await;
        // redis-cli moves no slot before.
        wait_until("the nodes agree about the slots", async || {
            let check = Command::new("redis-cli").args(["--cluster", "check", &address]).output();
            check.await.unwrap().status.success()
        })
        .await;
        // That check passes although a primary does not know a new node yet ("ERR Unknown node").
        for primary in ["1", "2", "3"] {
            wait_until("each primary knows the destination", async || {
                self.ask::<String>(primary, "CLUSTER NODES").await.contains(&to_id)
            })
            .await;
        }
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &address, "--cluster-yes"]);
        reshard.args(["--cluster-from", &from_id, "--cluster-to", &to_id]);
        output(reshard.arg("--cluster-slots").arg(slots.to_string())).await;
    }

    /// What a node of the cluster calls itself.
    pub async fn id(&self, server: &str) -> String {
        self.ask(server, "CLUSTER MYID").await
    }

    async fn address(&self, server: &str) -> String {
        let url = url::Url::parse(&self.url(server).await).unwrap();
        format!("127.0.0.1:{}", url.port().unwrap())
    }

    /// Runs `redis-node`'s `kill`, `start`, `freeze` and so on for one of the servers.
    pub async fn run(&self, command: &str, server: &str) -> String {
        let mut node = Command::new(script("redis-node"));
        output(node.arg(command).arg(self.dir.join(server))).await.trim().to_owned()
    }

    /// The URL of one of the servers.
    pub async fn url(&self, server: &str) -> String {
        self.run("url", server).await
    }

    pub async fn connect(&self, server: &str) -> MultiplexedConnection {
        redis::connect(&self.url(server).await).await
    }

    /// Runs a command given as one line on one of the servers.
    pub async fn ask<T: FromRedisValue>(&self, server: &str, line: &str) -> T {
        redis::ask(&mut self.connect(server).await, line).await
    }

    /// Adds a user for workers to these servers, with the documented permissions and those of a mode.
    pub async fn add_user(&self, servers: &[&str], env: &TestEnv, password: &str, more: &str) {
        let keys = format!("~{}:*", env.name);
        let user = format!("ACL SETUSER handoff on >{password} {keys} {PERMISSIONS} {more}");
        for server in servers {
            self.ask::<()>(server, &user).await;
        }
    }

    /// How often the servers have run this command since `CONFIG RESETSTAT`.
    pub async fn calls(&self, servers: &[&str], command: &str) -> usize {
        let mut calls = 0;
        for server in servers {
            let stats: String = self.ask(server, "INFO commandstats").await;
            let line = format!("cmdstat_{command}:calls=");
            let found = stats.lines().find_map(|stat| stat.strip_prefix(&line));
            calls += found.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap());
        }
        calls
    }

    /// Waits until a sentinel calls another server than this one the primary.
    pub async fn wait_for_named_primary(&self, sentinel: &str, former: &str) {
        let mut connection = self.connect(sentinel).await;
        let former = self.address(former).await;
        wait_until("another primary", async || {
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg("mymaster");
            let (host, port): (String, u16) = question.query_async(&mut connection).await.unwrap();
            format!("{host}:{port}") != former
        })
        .await;
    }

    /// Waits until a server says that it is a primary.
    pub async fn wait_for_primary(&self, server: &str) {
        let mut connection = self.connect(server).await;
        wait_until("the replica's promotion", async || {
            let mut info = cmd("INFO");
            let info = info.arg("replication").query_async::<String>(&mut connection).await;
            info.unwrap().contains("role:master")
        })
        .await;
    }
}

/// Options with which a server also listens for TLS, with this certificate.
pub fn tls_options(certificate: &TempFile, key: &TempFile, authority: &Authority) -> Vec<String> {
    let authority = authority.certificate_file();
    let files =
        [certificate.path(), "--tls-key-file", key.path(), "--tls-ca-cert-file", &authority];
    let options = ["--tls-port", "TLS_PORT", "--tls-auth-clients", "no", "--tls-cert-file"];
    options.into_iter().chain(files).map(str::to_owned).collect()
}

/// What `handoff doctor` says about Redis.
pub async fn doctor(env: &TestEnv) -> Vec<Value> {
    let output = run(&["doctor", "--json"], &env.settings).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(!stdout.contains("s3cret"), "{stdout}");
    let checks = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    checks.filter(|check| check["area"] == "redis").collect()
}

/// Asserts that one of the checks has this verdict and says this.
pub fn assert_check(checks: &[Value], name: &str, verdict: &str, text: &str) {
    let is_it = |check: &&Value| {
        check["name"] == name && check["verdict"] == verdict && check.to_string().contains(text)
    };
    assert!(checks.iter().any(|check| is_it(&check)), "{name} {verdict} {text}: {checks:#?}");
}

impl Drop for Servers {
    fn drop(&mut self) {
        let mut destroy = std::process::Command::new(&self.script);
        let destroyed = destroy.arg("destroy").arg(&self.dir).status();
        assert!(destroyed.is_ok() || std::thread::panicking());
    }
}
