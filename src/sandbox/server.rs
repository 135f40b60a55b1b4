//! The running sandbox, and the handle to it.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::handler::Handler;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use uuid::Uuid;

use super::{
    connection::{Cut, CutListener},
    faults::Faults,
    options::Options,
    platform::Platform,
    record::{CallRecord, Recorder},
    routes,
    stats::Stats,
};

/// How long [`Sandbox::stop`] waits for what is being served.
const GRACE: Duration = Duration::from_secs(5);

/// A handle to a running sandbox. Copies are cheap; with the last of them the sandbox stops.
#[derive(Clone)]
pub struct Sandbox {
    shared: Arc<Shared>,
    server: Arc<Server>,
}

struct Server {
    addr: SocketAddr,
    tasks: TaskTracker,
    /// Stops the server with the last handle.
    _stop: DropGuard,
}

/// What every request can reach.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) started: Instant,
    /// Makes fingerprints mean nothing outside of this run.
    pub(super) salt: Uuid,
    pub(super) stopping: CancellationToken,
    calls: AtomicUsize,
    most_calls: AtomicUsize,
    platform: Mutex<Platform>,
}

impl Sandbox {
    /// Serves on a listener, in the background of the present Tokio runtime.
    ///
    /// # Errors
    /// When an option is out of its range, or the listener has no address.
    pub fn start(listener: TcpListener, options: Options) -> io::Result<Self> {
        let options = options.checked()?;
        let addr = listener.local_addr()?;
        let stopping = CancellationToken::new();
        let shared = Arc::new(Shared::new(options, stopping.clone()));
        let service = routes::dispatch.with_state(Arc::clone(&shared));
        let server = axum::serve(
            CutListener(listener),
            service.into_make_service_with_connect_info::<Cut>(),
        );
        let tasks = TaskTracker::new();
        tasks
            .spawn(server.with_graceful_shutdown(stopping.clone().cancelled_owned()).into_future());
        tasks.close();
        let server = Server { addr, tasks, _stop: stopping.drop_guard() };
        Ok(Self { shared, server: Arc::new(server) })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// The base URL to call it at from this machine, path prefix included, without a slash at the
    /// end: `http://127.0.0.1:8085`.
    pub fn url(&self) -> String {
        let mut addr = self.server.addr;
        match addr {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                addr.set_ip(Ipv4Addr::LOCALHOST.into())
            }
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                addr.set_ip(Ipv6Addr::LOCALHOST.into())
            }
            _ => {}
        }
        format!("http://{addr}{}", self.shared.options.path_prefix)
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The last 10,000 calls of the API, oldest first.
    pub fn calls(&self) -> Vec<CallRecord> {
        self.shared.platform().recorder.calls()
    }

    /// Forgets the calls and the counts. Tokens and sessions stay.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// The faults that are left.
    pub fn faults(&self) -> Faults {
        self.shared.platform().gate.faults.clone()
    }

    /// Replaces all faults; [`Faults::default`] ends them.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.platform().gate.faults = faults;
    }

    /// Replaces the API key. Tokens made with the former one serve no session any more.
    pub fn set_api_key(&self, api_key: impl Into<String>) {
        self.shared.platform().set_api_key(api_key.into());
    }

    /// Ends all tokens now, as if their time had come.
    pub fn end_tokens(&self) {
        self.shared.platform().tokens.end_all(Instant::now());
    }

    /// Stops: takes no more connections, cuts simulated latency short, and waits up to five seconds
    /// for what is being served.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        if timeout(GRACE, self.server.tasks.wait()).await.is_err() {
            tracing::warn!("a client keeps its request open; the sandbox stops without it");
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(options: Options, stopping: CancellationToken) -> Self {
        Self {
            platform: Mutex::new(Platform::new(&options)),
            options,
            started: Instant::now(),
            salt: Uuid::new_v4(),
            stopping,
            calls: AtomicUsize::new(0),
            most_calls: AtomicUsize::new(0),
        }
    }

    /// The platform's state. A panic elsewhere leaves it usable: no step of a change depends on the
    /// next.
    pub(super) fn platform(&self) -> MutexGuard<'_, Platform> {
        self.platform.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> Stats {
        let most_calls = self.most_calls.load(Ordering::Relaxed);
        let uptime = self.millis(Instant::now());
        Stats::of(&self.platform().recorder.counts, most_calls, uptime)
    }

    pub(super) fn reset(&self) {
        self.platform().recorder = Recorder::default();
        self.most_calls.store(self.calls.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Milliseconds since the start.
    pub(super) fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts a call as being served until what is returned goes.
    pub(super) fn serving(&self) -> Serving<'_> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_calls.fetch_max(calls, Ordering::Relaxed);
        Serving(&self.calls)
    }
}

pub(super) struct Serving<'a>(&'a AtomicUsize);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
