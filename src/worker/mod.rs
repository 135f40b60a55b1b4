//! The worker: takes deliveries, serves them concurrently, settles each, and drains on shutdown.

mod connected;
mod connector;
mod consume;
mod endings;
mod events;
mod hold;
mod log;
mod logins;
mod metadata;
mod prefetch;
mod process;
mod run;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use self::{
    connected::Context, events::Events, hold::HoldLimit, process::Processor, run::MainLoop,
};
use crate::{
    cache::{Cache, Probes, RateBucket, TakenPermit, WantedPermit},
    config::{Settings, watch_file},
    handoff::Handoff,
    health::{self, Health},
    platform::{
        BucketGrant, BucketRequest, ClientBuildError, LinkBuilder, PermitKind, PlatformClient,
        ProbeReply, ProbeRequest, RateLimiter, ReplicaCount, SharedBucket, SharedProbes, Turn,
    },
    telemetry::{metrics::Metrics, traces::Traces},
};

/// How long the first requests may wait for the connection to Redis at start.
const CACHE_WARM_UP: Duration = Duration::from_secs(1);

/// Why the worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The HTTP client could not be built.
    #[error(transparent)]
    Platform(#[from] ClientBuildError),
}

/// Runs until `shutdown` is cancelled, then drains and returns. Serves probes and metrics on `listener`.
///
/// # Errors
/// Only at start; a running worker reconnects indefinitely.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    log::authorities();
    let metrics = Metrics::new();
    let cache = Cache::new(&settings.cache, Arc::clone(&metrics));
    let limit = settings.platform.rate_limit;
    let replicas = limit.map(|_| Arc::new(ReplicaCount::default()));
    let limiter = limit.zip(replicas.clone()).map(|(limit, replicas)| {
        RateLimiter::new(limit, shared_bucket(RateBucket::new(cache.clone(), limit)), replicas)
    });
    let concurrency = settings.worker.concurrency;
    let platform =
        PlatformClient::new(&settings.platform, limiter, concurrency, Arc::clone(&metrics))?;
    let platform = Arc::new(platform.with_shared_probes(shared_probes(Probes::new(&cache))));
    let health = Health::new(Arc::clone(&metrics));
    health.watch();

    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, "serving /livez, /readyz and /metrics");
    }
    let probe_server = tokio::spawn(health::serve(listener, probes(&health, &cache, &platform)));
    let idle_prober = {
        let platform = Arc::clone(&platform);
        tokio::spawn(async move { platform.probe_when_idle().await })
    };
    let _probe_sharer = {
        let platform = Arc::clone(&platform);
        AbortOnDropHandle::new(tokio::spawn(async move { platform.share_probes().await }))
    };
    let looking = futures_util::future::join4(
        watch_file(settings.platform.api_key.clone()),
        settings.broker.nodes.clone().watch(),
        settings.cache.redis.clone().watch_files(),
        watch_file(settings.cache.seal_keys.clone()),
    );
    let _looking = AbortOnDropHandle::new(tokio::spawn(looking));
    cache.wait_connected(CACHE_WARM_UP).await;

    let retry_budget = settings.worker.retry_budget;
    let slots = Arc::new(Semaphore::new(concurrency.into()));
    let grace_over = CancellationToken::new();
    let draining = CancellationToken::new();
    let processor = Processor {
        handoff: Handoff::new(
            settings.platform.flow,
            platform,
            cache.clone(),
            retry_budget,
            Arc::clone(&metrics),
            draining.clone(),
        ),
        cache,
        events: Events {
            links: LinkBuilder::new(&settings.platform),
            metrics: Arc::clone(&metrics),
            grace_over: grace_over.clone(),
        },
        metrics,
        traces: Traces::from_env(),
        max_message_bytes: settings.worker.max_message_bytes,
        default_workflow: settings.worker.workflow_id,
        hold: HoldLimit::new(settings.worker.hold_limit),
        slots: Arc::clone(&slots),
        grace_over,
    };
    let main_loop = MainLoop {
        context: Context {
            processor: Arc::new(processor),
            queue: settings.broker.queue.clone(),
            slots,
            tasks: TaskTracker::new(),
            retiring: TaskTracker::new(),
            health,
            shutdown,
            draining,
        },
        broker: settings.broker,
        concurrency,
        grace: settings.worker.shutdown_grace,
        replicas,
    };
    main_loop.run().await;
    idle_prober.abort();
    probe_server.abort();
    Ok(())
}

/// What the probes report.
fn probes(health: &Arc<Health>, cache: &Cache, platform: &Arc<PlatformClient>) -> health::Probes {
    let cache = cache.clone();
    let checked = Arc::clone(platform);
    let measured = Arc::clone(platform);
    health::Probes {
        health: Arc::clone(health),
        redis: Box::new(move || cache.is_available()),
        platform: Box::new(move || !checked.gate().is_breaker_open()),
        measure: Box::new(move || measured.gate().update_metrics()),
    }
}

/// Redis' bucket as a function: the platform does not know the cache.
fn shared_bucket(bucket: RateBucket) -> SharedBucket {
    Box::new(move |request| {
        let bucket = bucket.clone();
        Box::pin(async move {
            match request {
                BucketRequest::Take { calls, turn } => {
                    let turn = turn.map_or((0, 0), |turn| (turn.at, turn.calls));
                    let taken = bucket.take(calls, turn).await.ok()?;
                    let (at, calls) = taken.turn;
                    let turn = (calls > 0).then_some(Turn { at, calls });
                    Some(BucketGrant { calls: taken.granted, wait: taken.wait, turn })
                }
                BucketRequest::PutBack(calls) => {
                    bucket.put_back(calls).await.ok()?;
                    Some(BucketGrant { calls: 0, wait: Duration::ZERO, turn: None })
                }
            }
        })
    })
}

/// The permits to probe in Redis, likewise.
fn shared_probes(probes: Probes) -> SharedProbes {
    Box::new(move |request| {
        let probes = probes.clone();
        Box::pin(async move {
            let taken = match request {
                ProbeRequest::Look => probes.look().await,
                ProbeRequest::Permit(PermitKind { is_half_open, is_second_call }) => {
                    probes.take(WantedPermit { is_half_open, is_second_call }).await
                }
                ProbeRequest::Answered { calls } => {
                    return probes.answered(calls).await.ok().map(|()| ProbeReply::default());
                }
            };
            let TakenPermit { is_granted, wait, answered_ago } = taken.ok()?;
            Some(ProbeReply { is_granted, wait, answered_ago })
        })
    })
}
