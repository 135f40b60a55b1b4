//! Who is measured, as a process: what it took of the processor and of memory, as Linux accounts it.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{Result, platform::beside_us};

/// Ticks a second in `/proc`: the same on every Linux in use.
const TICKS: f64 = 100.0;
const KIB: f64 = 1024.0;

/// A worker that can be started.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    program: String,
    arguments: Vec<String>,
    interpreted: bool,
}

/// A worker at work.
pub(crate) struct Running {
    child: Child,
    pid: u32,
}

/// What a worker is told.
pub(crate) struct Environment<'a> {
    pub(crate) amqp: &'a str,
    pub(crate) redis: &'a str,
    pub(crate) platform: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) events: &'a str,
    pub(crate) concurrency: usize,
}

impl Subject {
    pub(crate) fn floor() -> Result<Self> {
        Ok(Self::new("bare loop", &beside_us("floor")?, []))
    }

    pub(crate) fn handoff() -> Result<Self> {
        Ok(Self::new("handoff", &beside_us("handoff")?, ["run"]))
    }

    /// Installed by `benches/peers/setup`.
    pub(crate) fn peers(folder: &Path) -> [Self; 2] {
        let python = folder.join("python/bin/python");
        let node = folder.join("node/worker.mjs");
        [
            Self::new("Python", &python, ["benches/peers/python/worker.py"]),
            Self::new("Node", Path::new("node"), [&*node.to_string_lossy()]),
        ]
        .map(|peer| Self { interpreted: true, ..peer })
    }

    fn new<'a>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let program = program.to_string_lossy().into_owned();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self { name, program, arguments, interpreted: false }
    }

    /// Size of the program, in MiB; `None` where that is an interpreter, whose size tells nothing.
    pub(crate) fn size(&self) -> Result<Option<f64>> {
        if self.interpreted {
            return Ok(None);
        }
        Ok(Some(fs::metadata(&self.program)?.len() as f64 / KIB / KIB))
    }

    pub(crate) fn start(&self, environment: &Environment<'_>) -> Result<Running> {
        let Environment { amqp, redis, platform, queue, events, concurrency } = environment;
        // A file, as a supervisor would have it: what is written there is paid for.
        let path = std::env::temp_dir().join(format!("handoff-bench-{queue}.log"));
        let log = File::create(&path)?;
        // It is open; nobody reads it, and the next worker writes one of its own.
        fs::remove_file(path)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env("HANDOFF_AMQP_URL", amqp)
            .env("HANDOFF_REDIS_URL", redis)
            .env("HANDOFF_IDV_URL", platform)
            .env("HANDOFF_IDV_API_KEY", "key")
            .env("HANDOFF_IDV_WORKFLOW_ID", "workflow")
            .env("HANDOFF_QUEUE", queue)
            .env("HANDOFF_EVENT_EXCHANGE", events)
            .env("HANDOFF_REQUEST_EXCHANGE", format!("{queue}-requests"))
            .env("HANDOFF_CONCURRENCY", concurrency.to_string())
            .env("HANDOFF_HTTP_ADDR", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", self.program))?;
        let pid = child.id().ok_or("it has ended at once")?;
        Ok(Running { child, pid })
    }
}

impl Running {
    /// Seconds of processor time so far, user and system, all threads.
    pub(crate) fn processor(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // Past the name, which may hold anything, fields 14 and 15 of the line are what is wanted.
        let fields = stat.rsplit_once(')').ok_or("no process accounting")?.1;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || fields.next()?.parse::<f64>().ok();
        Ok((next().zip(next())).map(|(user, system)| user + system).ok_or("no times")? / TICKS)
    }

    /// MiB in memory: the most so far, and now.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        let (peak, now) = field("VmHWM:").zip(field("VmRSS:")).ok_or("no memory accounting")?;
        Ok((peak / KIB, now / KIB))
    }

    /// Times it was put to sleep by its own will, all threads.
    pub(crate) fn switches(&self) -> Result<f64> {
        let mut switches = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let line = status.lines().find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.ok_or("no switches")?.trim().parse::<f64>()?;
        }
        Ok(switches)
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let kill = Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        let ended = timeout(Duration::from_secs(30), self.child.wait()).await??;
        match kill.success() && ended.success() {
            true => Ok(()),
            false => Err(format!("the worker ended with {ended}").into()),
        }
    }
}
