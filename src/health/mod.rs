//! The probes and the metrics page.

mod heartbeat;
mod listener;

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

pub use self::heartbeat::Heartbeat;
use self::listener::Bounded;
use crate::telemetry::metrics::{self, Metrics};

/// What the worker says of itself; shared with whoever serves the probes.
#[derive(Debug)]
pub struct Health {
    consuming: AtomicBool,
    /// Of the loop that takes requests.
    pub heartbeat: Heartbeat,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Not consuming yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { consuming: AtomicBool::new(false), heartbeat: Heartbeat::new(), metrics })
    }

    /// Has a thread watch the heartbeat, for as long as this is in use.
    pub fn watch(self: &Arc<Self>) {
        let health = Arc::downgrade(self);
        if heartbeat::watch(move || Some(health.upgrade()?.heartbeat.age())).is_err() {
            tracing::warn!("no thread for the watchdog: a worker that is stuck is not logged");
        }
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
    /// Brings those metrics up to date that are not by themselves.
    pub measure: Box<dyn Fn() + Send + Sync>,
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
pub struct ListenError {
    addr: SocketAddr,
    why: std::io::ErrorKind,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot listen on {}: {}; choose another address with HANDOFF_HTTP_ADDR",
            self.addr, self.why
        )
    }
}

impl std::error::Error for ListenError {}

/// Takes the address that probes and metrics are to be served at.
///
/// # Errors
/// When somebody else has it.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|error| ListenError { addr, why: error.kind() })
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

/// 503 only where a restart helps: while RabbitMQ is away, the queue empty, or every slot in use, the
/// loop turns all the same.
async fn livez(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Alive {
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        last_turn_ms: u64,
    }
    let age = probes.health.heartbeat.age();
    let last_turn_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    if age < heartbeat::STUCK_AFTER {
        return (StatusCode::OK, Json(Alive { status: "alive", reason: None, last_turn_ms }));
    }
    let reason = format!("the loop that takes requests has not turned for {} s", age.as_secs());
    let stuck = Alive { status: "stuck", reason: Some(reason), last_turn_ms };
    (StatusCode::SERVICE_UNAVAILABLE, Json(stuck))
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
    (probes.checks.measure)();
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_turn_is_a_reason_to_restart() {
        let health = Health::new(Metrics::new());
        let no = || Box::new(|| false);
        let checks = Checks { redis: no(), platform: no(), measure: Box::new(|| ()) };
        let probes = Arc::new(Probes { health: Arc::clone(&health), checks });
        let ask = async || livez(State(Arc::clone(&probes))).await.into_response();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(ask().await.status(), StatusCode::OK);
        tokio::time::advance(Duration::from_secs(2)).await;
        let response = ask().await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        let expected = r#"{"status":"stuck","reason":"the loop that takes requests has not turned for 61 s","lastTurnMs":61000}"#;
        assert_eq!(body, expected);
        health.heartbeat.beat();
        assert_eq!(ask().await.status(), StatusCode::OK);
    }
}
