//! The platform's process, from outside.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::Result;

/// The platform; ends with this.
pub(crate) struct Platform {
    /// Where it listens.
    pub(crate) url: String,
    _child: Child,
}

impl Platform {
    pub(crate) async fn start() -> Result<Self> {
        let mut child = Command::new(beside_us("platform")?)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the platform has no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        Ok(Self { url: line.ok_or("the platform did not start")?, _child: child })
    }

    /// Answers after so long from now on, and forgets the calls so far.
    pub(crate) async fn answers_after(&self, latency: Duration) -> Result<()> {
        self.ask(&format!("/latency/{}", latency.as_millis())).await.map(drop)
    }

    /// How many calls there were, and when the first came.
    pub(crate) async fn calls(&self) -> Result<(u64, SystemTime)> {
        let text = self.ask("/calls").await?;
        let (calls, first) = text.split_once(' ').ok_or("the platform's count cannot be read")?;
        let first = SystemTime::UNIX_EPOCH + Duration::from_nanos(first.parse()?);
        Ok((calls.parse()?, first))
    }

    async fn ask(&self, path: &str) -> Result<String> {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        let answer = client.get(format!("{}{path}", self.url)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }
}

/// A program that was built together with this one.
pub(crate) fn beside_us(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    match program.exists() {
        true => Ok(program),
        false => Err(format!("{} is missing: run this by `make bench`", program.display()).into()),
    }
}
