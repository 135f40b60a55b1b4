//! The simulated platform, in a process of its own so that its cost is not counted as a worker's.

use std::{path::PathBuf, process::Stdio, time::Duration};

use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{API_KEY, Result};

/// A `handoff sandbox`. Killed when it is dropped.
pub(crate) struct Sandbox {
    pub(crate) url: String,
    client: Client,
    _child: Child,
}

/// The API calls since the latency was last set.
pub(crate) struct Calls {
    pub(crate) count: u64,
    /// When the first one arrived, since the sandbox started.
    pub(crate) first: Option<Duration>,
}

impl Sandbox {
    pub(crate) async fn start() -> Result<Self> {
        let mut child = Command::new(sibling_program("handoff")?)
            .args(["sandbox", "--addr", "127.0.0.1:0", "--api-key", API_KEY])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the sandbox has no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        let url = line.rsplit(' ').next().unwrap_or_default().to_owned();
        let client = Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { url, client, _child: child })
    }

    /// Sets the latency of all later calls, and forgets the calls so far.
    pub(crate) async fn set_latency(&self, latency: Duration) -> Result<()> {
        let faults = match latency {
            Duration::ZERO => json!({}),
            latency => json!({ "both": { "latencyMs": latency.as_millis() } }),
        };
        self.send(Method::PUT, "faults", faults.to_string()).await?;
        self.send(Method::DELETE, "calls", String::new()).await?;
        Ok(())
    }

    pub(crate) async fn calls(&self) -> Result<Calls> {
        let stats = self.stats().await?;
        let count = |calls: &str| stats[calls]["total"].as_u64().unwrap_or_default();
        Ok(Calls {
            count: count("tokenCalls") + count("sessionCalls"),
            first: stats["firstCallMs"].as_u64().map(Duration::from_millis),
        })
    }

    /// How long the sandbox has been running.
    pub(crate) async fn uptime(&self) -> Result<Duration> {
        let uptime_ms = self.stats().await?["uptimeMs"].as_u64().ok_or("no uptime")?;
        Ok(Duration::from_millis(uptime_ms))
    }

    async fn stats(&self) -> Result<Value> {
        let stats = self.send(Method::GET, "stats", String::new()).await?;
        Ok(stats.json().await?)
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<Response> {
        let request = self.client.request(method, format!("{}/sandbox/{path}", self.url));
        Ok(request.body(body).send().await?.error_for_status()?)
    }
}

/// The path of a program that was built together with this one.
pub(crate) fn sibling_program(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if !program.exists() {
        return Err(format!("{} is missing: run this with `make bench`", program.display()).into());
    }
    Ok(program)
}
