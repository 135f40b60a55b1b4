//! The programs that are measured, and their use of CPU and memory as Linux accounts it.

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

use crate::{API_KEY, Result, sandbox::sibling_program};

/// Clock ticks per second in `/proc`: 100 on all common Linux systems.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: f64 = 1024.0;

/// A program that can be started as a worker.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    program: String,
    arguments: Vec<String>,
    interpreted: bool,
}

/// How a subject reaches the platform.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 without TLS.
    Plain,
    /// HTTP/1.1 over TLS.
    Http1,
    /// HTTP/2 over TLS, if the subject speaks it.
    Http2,
}

/// A running worker. Killed when it is dropped.
pub(crate) struct Worker {
    child: Child,
    pid: u32,
}

/// The settings of a worker.
pub(crate) struct WorkerSettings<'a> {
    pub(crate) amqp: &'a str,
    pub(crate) redis: &'a str,
    pub(crate) platform: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) events: &'a str,
    pub(crate) concurrency: usize,
    /// A certificate to trust, and no other.
    pub(crate) authority: Option<&'a Path>,
    /// Where callgrind writes its profile, if the worker runs under it.
    pub(crate) callgrind: Option<&'a Path>,
}

impl Subject {
    pub(crate) fn floor() -> Result<Self> {
        Ok(Self::new("bare loop", &sibling_program("floor")?, []))
    }

    /// The bare loop on one thread and with small buffers.
    pub(crate) fn tuned_floor() -> Result<Self> {
        Ok(Self::new("tuned loop", &sibling_program("floor")?, ["tuned"]))
    }

    pub(crate) fn handoff() -> Result<Self> {
        Ok(Self::new("handoff", &sibling_program("handoff")?, ["run"]))
    }

    /// The peers that `benches/peers/setup` installed.
    pub(crate) fn peers(folder: &Path) -> [Self; 2] {
        let python = folder.join("python/bin/python");
        let node = folder.join("node/worker.mjs");
        [
            Self::new("Python", &python, ["benches/peers/python/worker.py"]),
            Self::new("Node", Path::new("node"), [&*node.to_string_lossy()]),
        ]
        .map(|peer| Self { interpreted: true, ..peer })
    }

    /// The same subject over TLS.
    pub(crate) fn over_tls(self, protocol: Protocol) -> Self {
        let version = match protocol {
            Protocol::Plain => return self,
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        };
        Self { name: format!("{}, {version}", self.name), protocol, ..self }
    }

    fn new<'a>(name: &str, program: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let program = program.to_string_lossy().into_owned();
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let name = name.to_owned();
        Self { name, protocol: Protocol::Plain, program, arguments, interpreted: false }
    }

    /// The size of the program, in MiB; `None` for an interpreter, whose size means nothing.
    pub(crate) fn size(&self) -> Result<Option<f64>> {
        if self.interpreted {
            return Ok(None);
        }
        Ok(Some(fs::metadata(&self.program)?.len() as f64 / KIB / KIB))
    }

    pub(crate) fn start(&self, settings: &WorkerSettings<'_>) -> Result<Worker> {
        let WorkerSettings { amqp, redis, platform, queue, events, .. } = settings;
        let WorkerSettings { concurrency, authority, callgrind, .. } = settings;
        // The log goes to a file, as under a supervisor, so that the cost of writing it counts.
        let path = std::env::temp_dir().join(format!("handoff-bench-{queue}.log"));
        let log = File::create(&path)?;
        // Nothing reads it, so it is unlinked while it is open.
        fs::remove_file(path)?;
        let mut command = match callgrind {
            None => Command::new(&self.program),
            Some(profile) => {
                let mut command = Command::new("valgrind");
                command.args(["--quiet", "--tool=callgrind", "--instr-atstart=no"]);
                command.arg(format!("--callgrind-out-file={}", profile.display()));
                command.arg(&self.program);
                command
            }
        };
        if let Some(authority) = authority {
            command.env("SSL_CERT_FILE", authority).env("NODE_EXTRA_CA_CERTS", authority);
            command.env_remove("SSL_CERT_DIR");
        }
        let child = command
            .args(&self.arguments)
            .env("HANDOFF_AMQP_URL", amqp)
            .env("HANDOFF_REDIS_URL", redis)
            .env("HANDOFF_IDV_URL", platform)
            .env("HANDOFF_IDV_API_KEY", API_KEY)
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
            .map_err(|error| format!("cannot start {}: {error}", self.program))?;
        let pid = child.id().ok_or("the worker exited at once")?;
        Ok(Worker { child, pid })
    }
}

impl Worker {
    /// Seconds of CPU time so far, user and system, of all threads.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // utime and stime are fields 14 and 15. The name, field 2, may contain spaces.
        let fields = stat.rsplit_once(')').ok_or("no process accounting")?.1;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || fields.next()?.parse::<f64>().ok();
        Ok((next().zip(next())).map(|(user, system)| user + system).ok_or("no CPU accounting")?
            / TICKS_PER_SECOND)
    }

    /// Resident memory in MiB: the peak, and the current value.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        let (peak, now) = field("VmHWM:").zip(field("VmRSS:")).ok_or("no memory accounting")?;
        Ok((peak / KIB, now / KIB))
    }

    /// Voluntary context switches of all threads.
    pub(crate) fn context_switches(&self) -> Result<f64> {
        let mut switches = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let line = status.lines().find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.ok_or("no accounting of context switches")?.trim().parse::<f64>()?;
        }
        Ok(switches)
    }

    /// Has callgrind count, or stop counting. It has run the worker so far without.
    pub(crate) async fn count_instructions(&self, on: bool) -> Result<()> {
        let mut control = Command::new("callgrind_control");
        control.args(["-i", if on { "on" } else { "off" }, &self.pid.to_string()]);
        let status = control.stdout(Stdio::null()).status().await?;
        if !status.success() {
            return Err("callgrind_control failed".into());
        }
        Ok(())
    }

    /// Stops the worker with SIGTERM, and checks its exit status.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let kill = Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        let ended = timeout(Duration::from_secs(30), self.child.wait()).await??;
        if !(kill.success() && ended.success()) {
            return Err(format!("the worker exited with {ended}").into());
        }
        Ok(())
    }
}
