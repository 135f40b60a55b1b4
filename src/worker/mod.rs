//! The run: take deliveries, serve them side by side, settle each, and end in good order.

mod connection_log;
mod metadata;
mod prefetch;
mod process;
mod run;

use std::{fmt, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{process::Processor, run::Run};
use crate::{
    cache::{Cache, CacheError, RateBucket},
    config::Settings,
    handoff::Handoff,
    health::{self, Health},
    platform::{
        BucketGrant, ClientBuildError, PlatformClient, RateLimiter, ReplicaCount, SharedBucket,
    },
    telemetry::{metrics::Metrics, traces::Traces},
};

/// How long the first requests may wait for Redis when the worker starts.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);

/// Cause the worker did not start.
#[derive(Debug)]
pub enum StartError {
    /// The HTTP client could not be made.
    Platform(ClientBuildError),
    /// The Redis client could not be made.
    Cache(CacheError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform(error) => error.fmt(f),
            Self::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// Runs until `shutdown`, then drains and returns. Probes and metrics are served on `listener`.
///
/// # Errors
/// Only before it has begun: later it reconnects for ever.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let metrics = Metrics::new();
    let cache = Cache::new(&settings.cache, Arc::clone(&metrics)).map_err(StartError::Cache)?;
    let limit = settings.platform.rate_limit;
    let replicas = limit.map(|_| Arc::new(ReplicaCount::default()));
    let rate = limit.zip(replicas.clone()).map(|(limit, replicas)| {
        RateLimiter::new(limit, shared(cache.rate_bucket(limit)), replicas)
    });
    let platform = PlatformClient::new(&settings.platform, rate, Arc::clone(&metrics));
    let platform = Arc::new(platform.map_err(StartError::Platform)?);
    let health = Health::new(Arc::clone(&metrics));
    health.watch();

    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, "serving /livez, /readyz and /metrics");
    }
    let probes =
        tokio::spawn(health::serve(listener, Arc::clone(&health), checks(&cache, &platform)));
    let prober = {
        let platform = Arc::clone(&platform);
        tokio::spawn(async move { platform.probe_when_idle().await })
    };
    cache.wait_connected(CACHE_WARM_UP).await;

    let processor = Arc::new(Processor {
        handoff: Handoff::new(
            platform,
            cache,
            settings.worker.retry,
            settings.platform.public_url,
            Arc::clone(&metrics),
            shutdown.clone(),
        ),
        metrics,
        traces: Traces::from_env(),
        max_message_bytes: settings.worker.max_message_bytes,
        default_workflow: settings.worker.workflow_id,
        hold_limit: settings.worker.hold_limit,
        overdue: CancellationToken::new(),
    });
    let run = Run {
        processor,
        broker: settings.broker,
        prefetch: settings.worker.concurrency,
        slots: Arc::new(Semaphore::new(settings.worker.concurrency.into())),
        tasks: TaskTracker::new(),
        health,
        shutdown,
        grace: settings.worker.shutdown_grace,
        replicas,
    };
    run.until_shutdown().await;
    prober.abort();
    probes.abort();
    Ok(())
}

/// What the probes ask.
fn checks(cache: &Cache, platform: &Arc<PlatformClient>) -> health::Checks {
    let (cache, gate, measured) = (cache.clone(), Arc::clone(platform), Arc::clone(platform));
    health::Checks {
        redis: Box::new(move || cache.is_available()),
        platform: Box::new(move || !gate.gate().is_breaker_open()),
        measure: Box::new(move || measured.gate().update_metrics()),
    }
}

/// The bucket in Redis, as the platform's gate wants it.
fn shared(calls: RateBucket) -> SharedBucket {
    Box::new(move |wanted| {
        let calls = calls.clone();
        Box::pin(async move {
            let (calls, wait) = calls.take(wanted).await.ok()?;
            Some(BucketGrant { calls, wait })
        })
    })
}
