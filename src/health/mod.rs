//! Serves `/livez`, `/readyz` and `/metrics`.

mod bind;
mod heartbeat;
mod listener;
mod systemd;

use std::{
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
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::{bind::bind, heartbeat::Heartbeat, listener::LimitedListener};
use crate::{
    telemetry::metrics::{self, Metrics},
    units::millis,
};

/// The worker's state, as the probes report it.
#[derive(Debug)]
pub(crate) struct Health {
    consuming: AtomicBool,
    /// Why RabbitMQ refuses the login with the current settings.
    login_error: Mutex<Option<String>>,
    /// The heartbeat of the request loop.
    pub(crate) heartbeat: Heartbeat,
    metrics: Arc<Metrics>,
}

impl Health {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            consuming: AtomicBool::new(false),
            login_error: Mutex::default(),
            heartbeat: Heartbeat::new(),
            metrics,
        })
    }

    /// Starts the watchdog, which ends when `self` is dropped, and reports the start to systemd.
    pub(crate) fn watch(self: &Arc<Self>) {
        systemd::started();
        let health = Arc::downgrade(self);
        if let Err(error) = heartbeat::watch(move || Some(health.upgrade()?.heartbeat.age())) {
            tracing::warn!(%error, "watchdog not started: a stuck request loop will not be logged");
        }
    }

    /// Records whether the worker consumes deliveries.
    pub(crate) fn set_consuming(&self, consuming: bool) {
        self.consuming.store(consuming, Ordering::Relaxed);
        self.metrics.broker.set_connected(consuming);
        systemd::consuming(consuming);
    }

    /// Records that the worker shuts down.
    pub(crate) fn set_stopping(&self) {
        systemd::stopping();
    }

    /// Records that RabbitMQ refuses the login with the current settings, or accepts it again. The text holds
    /// no secret.
    pub(crate) fn set_login_error(&self, error: Option<String>) {
        *self.login_error.lock() = error;
    }
}

/// What probes and scrapes ask for. The callbacks run when one arrives.
pub(crate) struct Probes {
    pub(crate) health: Arc<Health>,
    /// Returns whether Redis works.
    pub(crate) redis: Box<dyn Fn() -> bool + Send + Sync>,
    /// Returns whether the circuit breaker of the platform is closed.
    pub(crate) platform: Box<dyn Fn() -> bool + Send + Sync>,
    /// Updates the metrics that change with time alone.
    pub(crate) measure: Box<dyn Fn() + Send + Sync>,
}

/// The probes' address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("HANDOFF_HTTP_ADDR: cannot listen on {addr}: {kind}; choose a free address of this host")]
pub(crate) struct ListenError {
    addr: SocketAddr,
    kind: std::io::ErrorKind,
}

/// Binds the address of the probes and metrics.
///
/// # Errors
/// The address is in use or not one of this host.
pub(crate) async fn listen(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    bind(addr).map_err(|error| ListenError { addr, kind: error.kind() })
}

/// Serves the probes and metrics until it is dropped.
pub(crate) async fn serve(listener: TcpListener, probes: Probes) {
    let routes = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Arc::new(probes));
    // `axum::serve` retries failed accepts and never returns.
    let _ = axum::serve(LimitedListener::new(listener), routes).await;
}

/// Answers 503 only if a restart helps: the request loop is stuck.
///
/// The loop beats while RabbitMQ is unavailable, the queue is empty, or all slots are in use.
async fn livez(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let age = probes.health.heartbeat.age();
    let last_turn_ms = millis(age);
    if age < heartbeat::STUCK_AFTER {
        let alive = json!({ "status": "alive", "lastTurnMs": last_turn_ms });
        return (StatusCode::OK, Json(alive));
    }
    let reason = format!("the request loop has not run for {} s", age.as_secs());
    let stuck = json!({ "status": "stuck", "reason": reason, "lastTurnMs": last_turn_ms });
    (StatusCode::SERVICE_UNAVAILABLE, Json(stuck))
}

/// Answers 503 while the worker serves no requests. Redis does not count: the worker can do without. Nor does a
/// login that RabbitMQ refuses while an earlier connection still serves.
async fn readyz(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let broker = probes.health.consuming.load(Ordering::Relaxed);
    let platform = (probes.platform)();
    let login_error = probes.health.login_error.lock().clone();
    let ok_or_failing = |works| if works { "ok" } else { "failing" };
    let checks = json!({
        "broker": if login_error.is_some() && broker { "degraded" } else { ok_or_failing(broker) },
        "platform": ok_or_failing(platform),
        "redis": if (probes.redis)() { "ok" } else { "degraded" },
    });
    let respond = |status, mut page: Value| {
        if let Some(error) = login_error {
            page["login"] = error.into();
        }
        (status, Json(page))
    };
    if broker && platform {
        return respond(StatusCode::OK, json!({ "status": "ready", "checks": checks }));
    }
    let failing: Vec<_> = [("broker", broker), ("platform", platform)]
        .into_iter()
        .filter_map(|(name, works)| (!works).then_some(name))
        .collect();
    let unready = json!({ "status": "unready", "failing": failing, "checks": checks });
    respond(StatusCode::SERVICE_UNAVAILABLE, unready)
}

async fn scrape(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let metrics = &probes.health.metrics;
    (probes.measure)();
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn livez_fails_while_the_request_loop_is_stuck() {
        let health = Health::new(Metrics::new());
        let no = || Box::new(|| false);
        let probes = Probes {
            health: Arc::clone(&health),
            redis: no(),
            platform: no(),
            measure: Box::new(|| ()),
        };
        let probes = Arc::new(probes);
        let ask = async || livez(State(Arc::clone(&probes))).await.into_response();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(ask().await.status(), StatusCode::OK);
        tokio::time::advance(Duration::from_secs(2)).await;
        let response = ask().await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        let expected = r#"{"status":"stuck","reason":"the request loop has not run for 61 s","lastTurnMs":61000}"#;
        assert_eq!(body, expected);
        health.heartbeat.beat();
        assert_eq!(ask().await.status(), StatusCode::OK);
    }
}
