//! The probes and the metrics page.

mod bounded;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;

use self::bounded::Bounded;
use crate::telemetry::metrics::{self, Metrics};

/// What the worker says of itself; shared with whoever serves the probes.
#[derive(Debug)]
pub struct Health {
    consuming: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Not consuming yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { consuming: AtomicBool::new(false), metrics })
    }

    /// Whether deliveries are being taken.
    pub fn set_consuming(&self, consuming: bool) {
        self.consuming.store(consuming, Ordering::Relaxed);
        self.metrics.broker_connected(consuming);
    }
}

/// Whether something is so, asked when a probe comes.
pub type Check = Box<dyn Fn() -> bool + Send + Sync>;

/// What the probes ask the parts of the worker.
pub struct Checks {
    /// Redis does what it is asked.
    pub redis: Check,
    /// The platform takes calls, but for those that it asks to have later.
    pub platform: Check,
    /// Calls to the platform are held back, for whatever reason.
    pub paused: Check,
}

struct Probes {
    health: Arc<Health>,
    checks: Checks,
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failing: Vec<&'static str>,
    checks: Findings,
}

#[derive(Serialize)]
struct Findings {
    broker: &'static str,
    platform: &'static str,
    redis: &'static str,
}

/// The address could not be taken.
#[derive(Debug)]
pub struct NoAddress {
    addr: SocketAddr,
    why: std::io::ErrorKind,
}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot listen on {}: {}; choose another address with HANDOFF_HTTP_ADDR",
            self.addr, self.why
        )
    }
}

impl std::error::Error for NoAddress {}

/// Takes the address that probes and metrics are to be served at.
///
/// # Errors
/// When somebody else has it.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, NoAddress> {
    TcpListener::bind(addr).await.map_err(|error| NoAddress { addr, why: error.kind() })
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as it is polled.
pub async fn serve(listener: TcpListener, health: Arc<Health>, checks: Checks) {
    let probes = Arc::new(Probes { health, checks });
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(page))
        .with_state(probes);
    // Serving goes on over failed connections and never ends by itself.
    let _ = axum::serve(Bounded::new(listener), routes).await;
}

async fn livez() -> impl IntoResponse {
    #[derive(Serialize)]
    struct Alive {
        status: &'static str,
    }
    // Whoever can answer at all need not be restarted.
    Json(Alive { status: "alive" })
}

async fn readyz(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let broker = probes.health.consuming.load(Ordering::Relaxed);
    let platform = (probes.checks.platform)();
    let failing: Vec<_> = [("broker", broker), ("platform", platform)]
        .into_iter()
        .filter_map(|(name, works)| (!works).then_some(name))
        .collect();
    let (code, status) = match failing.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unready"),
    };
    let or_failing = |works| if works { "ok" } else { "failing" };
    let checks = Findings {
        broker: or_failing(broker),
        platform: or_failing(platform),
        redis: if (probes.checks.redis)() { "ok" } else { "degraded" },
    };
    (code, Json(Report { status, failing, checks }))
}

async fn page(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let metrics = &probes.health.metrics;
    metrics.platform_paused((probes.checks.paused)());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())
}
