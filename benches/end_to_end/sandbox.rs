//! The simulated platform, in a process of its own so that its cost is not counted as a worker's.

use std::{path::PathBuf, process::Stdio, time::Duration};

use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{
    API_KEY, Result,
    certificates::Certificates,
    front::{Addresses, Connections},
    subject::Protocol,
};

/// A `handoff sandbox`, or one behind TLS. Killed when it is dropped.
pub(crate) struct Sandbox {
    url: String,
    client: Client,
    _child: Child,
    front: Option<Front>,
}

/// The process of `front`.
struct Front {
    addresses: Addresses,
    certificates: Certificates,
    pipes: Mutex<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

/// The API calls since the latency was last set.
pub(crate) struct Calls {
    pub(crate) count: u64,
    /// When the first one arrived, since the sandbox started.
    pub(crate) first: Option<Duration>,
}

impl Sandbox {
    pub(crate) async fn start() -> Result<Self> {
        let mut child = spawn(
            Command::new(sibling_program("handoff")?)
                .args(["sandbox", "--addr", "127.0.0.1:0", "--api-key", API_KEY])
                .stderr(Stdio::null()),
        )?;
        let line = lines(&mut child)?.next_line().await?.unwrap_or_default();
        let url = line.rsplit(' ').next().unwrap_or_default().to_owned();
        Ok(Self { url, client: client()?, _child: child, front: None })
    }

    /// Starts one behind TLS, and TLS in front of RabbitMQ and Redis.
    pub(crate) async fn start_with_tls(amqp: &str, redis: &str) -> Result<Self> {
        let certificates = Certificates::make()?;
        let mut child = spawn(
            Command::new(std::env::current_exe()?)
                .arg("front")
                .arg(certificates.folder())
                .args([address(amqp)?, address(redis)?])
                .stdin(Stdio::piped()),
        )?;
        let mut lines = lines(&mut child)?;
        let addresses = lines.next_line().await?.ok_or("the front did not start")?;
        let addresses: Addresses = serde_json::from_str(&addresses)?;
        let stdin = child.stdin.take().ok_or("the front has no stdin")?;
        let pipes = Mutex::new((stdin, lines));
        Ok(Self {
            url: addresses.plain.clone(),
            client: client()?,
            _child: child,
            front: Some(Front { addresses, certificates, pipes }),
        })
    }

    /// The base URL for a subject.
    pub(crate) fn url(&self, protocol: Protocol) -> String {
        match (protocol, &self.front) {
            (Protocol::Http1, Some(front)) => https(front.addresses.http1),
            (Protocol::Http2, Some(front)) => https(front.addresses.http2),
            _ => self.url.clone(),
        }
    }

    /// The URLs of RabbitMQ and Redis behind TLS.
    pub(crate) fn with_tls(&self, amqp: &str, redis: &str) -> Result<(String, String)> {
        let front = self.front.as_ref().ok_or("the front was not started")?;
        let amqp = amqp.replace(address(amqp)?, &format!("localhost:{}", front.addresses.amqps));
        let redis =
            redis.replace(address(redis)?, &format!("localhost:{}", front.addresses.rediss));
        Ok((amqp.replace("amqp:", "amqps:"), redis.replace("redis:", "rediss:")))
    }

    /// The certificate that subjects must trust.
    pub(crate) fn authority(&self) -> Option<PathBuf> {
        self.front.as_ref().map(|front| front.certificates.authority())
    }

    /// The TLS connections since the latency was last set.
    pub(crate) async fn connections(&self) -> Result<Option<Connections>> {
        let Some(front) = &self.front else { return Ok(None) };
        let (stdin, lines) = &mut *front.pipes.lock().await;
        stdin.write_all(b"\n").await?;
        let line = lines.next_line().await?.ok_or("the front has exited")?;
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// Sets the latency of all later calls, and forgets the calls so far.
    pub(crate) async fn set_latency(&self, latency: Duration) -> Result<()> {
        let faults = match latency {
            Duration::ZERO => json!({}),
            latency => json!({ "both": { "latencyMs": latency.as_millis() } }),
        };
        self.send(Method::PUT, "faults", faults.to_string()).await?;
        self.send(Method::DELETE, "calls", String::new()).await?;
        self.connections().await?;
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

fn spawn(command: &mut Command) -> Result<Child> {
    Ok(command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?)
}

fn lines(child: &mut Child) -> Result<Lines<BufReader<ChildStdout>>> {
    let stdout = child.stdout.take().ok_or("the process has no stdout")?;
    Ok(BufReader::new(stdout).lines())
}

fn client() -> Result<Client> {
    Ok(Client::builder().no_proxy().tls_certs_only([]).build()?)
}

fn https(port: u16) -> String {
    format!("https://localhost:{port}")
}

/// The host and port of a URL.
fn address(url: &str) -> Result<&str> {
    let rest = url.split_once("://").ok_or("a URL has no scheme")?.1;
    let authority = rest.split('/').next().unwrap_or_default();
    Ok(authority.rsplit('@').next().unwrap_or_default())
}

/// The path of a program that was built together with this one.
pub(crate) fn sibling_program(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    if !program.exists() {
        return Err(format!("{} is missing: run this with `make bench`", program.display()).into());
    }
    Ok(program)
}
