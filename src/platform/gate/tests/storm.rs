//! Many requests that start, wait, call, fail and are cancelled at random times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

use super::super::{FailureScope, Gate};
use crate::{
    config::RateLimit,
    platform::{
        BucketGrant, BucketRequest, RateLimiter, ReplicaCount,
        error::{CallError, TransientCause},
    },
    session::Call::{Session, Token},
    telemetry::metrics::Metrics,
};

fn transient(retry_after: Option<Duration>) -> CallError {
    let status = reqwest::StatusCode::SERVICE_UNAVAILABLE;
    CallError::Transient { call: Token, cause: TransientCause::Unavailable { status, retry_after } }
}

#[derive(Clone, Copy, PartialEq)]
enum Platform {
    Failing,
    Healthy,
}

/// Makes both calls of a request. May be cancelled at any await.
async fn serve(gate: &Gate, n: u64, platform: Platform, mut rng: StdRng) {
    let mut ticket = gate.ticket(&n.to_string(), "w");
    for call in [Token, Session] {
        ticket.reserve(call);
        let permit = ticket.acquire(call).await;
        sleep(Duration::from_millis(rng.random_range(0..800))).await;
        let answer = match rng.random_range(0..10) {
            _ if platform == Platform::Healthy => Ok(()),
            0..4 => Ok(()),
            4..7 => Err(transient(None)),
            7 => Err(transient(Some(Duration::from_secs(rng.random_range(0..4))))),
            8 if call == Token => {
                Err(CallError::Refused { call: Token, status: reqwest::StatusCode::FORBIDDEN })
            }
            8 => Err(CallError::Unauthorized),
            _ => return,
        };
        if permit.report(answer).is_err() {
            return;
        }
    }
}

/// Does what the worker does while it holds no request.
async fn probe_when_idle(gate: Arc<Gate>, platform: impl Fn() -> Result<(), CallError>) {
    loop {
        let mut ticket = gate.idle_ticket().await;
        if let Some(permit) = ticket.acquire_idle_probe().await {
            sleep(Duration::from_millis(30)).await;
            let _ = permit.report(platform());
        }
    }
}

async fn storm(seed: u64, rate_limiter: Option<RateLimiter>) {
    let gate = Arc::new(Gate::new(rate_limiter, 64, Metrics::new()));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut requests = tokio::task::JoinSet::new();
    let idle_rng = parking_lot::Mutex::new(StdRng::seed_from_u64(seed));
    let idle_answer = move || {
        if idle_rng.lock().random_bool(0.5) { Ok(()) } else { Err(transient(None)) }
    };
    let idle_prober = tokio::spawn(probe_when_idle(Arc::clone(&gate), idle_answer));
    for n in 0..300 {
        sleep(Duration::from_millis(rng.random_range(0..200))).await;
        let gate = Arc::clone(&gate);
        let own_rng = StdRng::seed_from_u64(rng.random());
        let patience = Duration::from_millis(rng.random_range(0..20_000));
        requests.spawn(async move {
            let _ = timeout(patience, serve(&gate, n % 50, Platform::Failing, own_rng)).await;
        });
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    // The storm left nothing behind: once a probe succeeds, all new requests are served.
    let began = Instant::now();
    for n in 0..300 {
        let gate = Arc::clone(&gate);
        let own_rng = StdRng::seed_from_u64(n);
        requests.spawn(async move { serve(&gate, n, Platform::Healthy, own_rng).await });
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(40), "seed {seed}: {:?}", began.elapsed());
    idle_prober.abort();
    let mut ticket = gate.ticket("last", "w");
    drop(ticket.acquire(Token).await);
    assert_eq!(gate.state.lock().in_flight(), 0, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn cancelled_requests_leave_nothing_behind() {
    for seed in 0..5 {
        storm(seed, None).await;
        let limit = RateLimit { count: 60, per: Duration::from_secs(1) };
        let bucket = Box::new(|request| {
            let calls = match request {
                BucketRequest::Take { calls, .. } => calls.min(3),
                BucketRequest::PutBack(_) => 0,
            };
            let granted = BucketGrant { calls, wait: Duration::from_millis(50), turn: None };
            Box::pin(async move {
                sleep(Duration::from_millis(2)).await;
                Some(granted)
            }) as _
        });
        storm(seed, Some(RateLimiter::new(limit, bucket, Arc::new(ReplicaCount::default())))).await;
    }
}

/// A request that calls again as soon as the gate allows it, and counts the failures that are its own.
async fn retry_forever(gate: Arc<Gate>, n: u64, took: Duration, own: Arc<AtomicU32>) {
    let mut ticket = gate.ticket(&n.to_string(), "w");
    ticket.acquire(Token).await.report(Ok(())).unwrap();
    loop {
        let permit = ticket.acquire(Session).await;
        let began = Instant::now();
        sleep(took).await;
        let cause = TransientCause::Timeout { sent: true };
        let error = CallError::Transient { call: Session, cause };
        let failed = permit.report::<()>(Err(error)).unwrap_err();
        if failed.scope != FailureScope::Pause
            && timeout(gate.outage_wait(Session, began), gate.until_paused()).await.is_err()
        {
            own.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_prober_does_not_end_an_outage_of_session_calls() {
    for took in [Duration::from_millis(5), Duration::from_secs(6)] {
        let gate = Arc::new(Gate::new(None, 64, Metrics::new()));
        let own = Arc::new(AtomicU32::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(probe_when_idle(Arc::clone(&gate), || Ok(())));
        for n in 0..3 {
            tasks.spawn(retry_forever(Arc::clone(&gate), n, took, Arc::clone(&own)));
        }
        gate.until_paused().await;
        let end = Instant::now() + Duration::from_secs(130);
        while Instant::now() < end {
            sleep(Duration::from_millis(10)).await;
            assert!(gate.is_breaker_open(), "{took:?}");
        }
        assert_eq!(own.load(Ordering::Relaxed), 0, "{took:?}");
    }
}
