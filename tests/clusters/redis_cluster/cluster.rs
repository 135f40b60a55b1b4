//! A Redis Cluster of six nodes, or a primary with sentinels, that one test breaks.

use std::path::PathBuf;

use deadpool_redis::redis::{FromRedisValue, aio::MultiplexedConnection, cmd};
use tokio::process::Command;

use crate::support::{redis, wait_until};

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

    pub async fn start(name: &str, options: &[&str], environment: &[(&str, &str)]) -> Self {
        let dir = format!("handoff-test-{}", uuid::Uuid::new_v4().simple());
        let mut servers =
            Self { script: script(name), dir: std::env::temp_dir().join(dir), urls: String::new() };
        let mut start = Command::new(&servers.script);
        start.arg("start").arg(&servers.dir).args(options).envs(environment.iter().copied());
        servers.urls = output(&mut start).await;
        servers
    }

    /// Runs `redis-node`'s `kill`, `start`, `freeze` and so on for one of the servers.
    pub async fn run(&self, command: &str, server: &str) -> String {
        let mut node = Command::new(script("redis-node"));
        output(node.arg(command).arg(self.dir.join(server))).await
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
        let mut words = line.split(' ');
        let mut command = cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command.query_async(&mut self.connect(server).await).await.unwrap()
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

impl Drop for Servers {
    fn drop(&mut self) {
        let mut destroy = std::process::Command::new(&self.script);
        let destroyed = destroy.arg("destroy").arg(&self.dir).status();
        assert!(destroyed.is_ok() || std::thread::panicking());
    }
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

async fn output(command: &mut Command) -> String {
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
