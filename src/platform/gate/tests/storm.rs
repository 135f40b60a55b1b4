//! Many requests that come, wait, call, fail and give up at any moment.

use std::{sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

use super::super::{CallError, Gate};
use crate::{
    config::RateLimit,
    platform::{BucketGrant, RateLimiter, ReplicaCount, error::Transient},
    session::Call::{Session, Token},
    telemetry::metrics::Metrics,
};

fn transient(retry_after: Option<Duration>) -> CallError {
    CallError::Transient { call: Token, why: Transient::Timeout, retry_after }
}

/// A request's way, which may be cut short at any wait.
async fn go(gate: &Gate, n: u64, well: bool, mut dice: StdRng) {
    let mut ticket = gate.ticket(&n.to_string());
    for call in [Token, Session] {
        ticket.reserve(call);
        let pass = ticket.acquire(call).await;
        sleep(Duration::from_millis(dice.random_range(0..800))).await;
        let answer = match dice.random_range(0..10) {
            _ if well => Ok(()),
            0..4 => Ok(()),
            4..7 => Err(transient(None)),
            7 => Err(transient(Some(Duration::from_secs(dice.random_range(0..4))))),
            8 if call == Token => Err(CallError::Refused(reqwest::StatusCode::FORBIDDEN)),
            8 => Err(CallError::Unauthorized),
            _ => return,
        };
        if pass.report(answer).is_err() {
            return;
        }
    }
}

async fn storm(seed: u64, rate: Option<RateLimiter>) {
    let gate = Arc::new(Gate::new(rate, Metrics::new()));
    let mut dice = StdRng::seed_from_u64(seed);
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..300 {
        sleep(Duration::from_millis(dice.random_range(0..200))).await;
        let (gate, own) = (Arc::clone(&gate), StdRng::seed_from_u64(dice.random()));
        let patience = Duration::from_millis(dice.random_range(0..20_000));
        requests.spawn(async move {
            let _ = timeout(patience, go(&gate, n % 50, false, own)).await;
        });
    }
    while requests.join_next().await.is_some() {}
    assert_eq!(gate.held.load(std::sync::atomic::Ordering::Relaxed), 0);
    // Nothing is left behind: all that come now get through, as soon as somebody has found out.
    let began = Instant::now();
    for n in 0..300 {
        let (gate, own) = (Arc::clone(&gate), StdRng::seed_from_u64(n));
        requests.spawn(async move { go(&gate, n, true, own).await });
    }
    while requests.join_next().await.is_some() {}
    assert!(began.elapsed() < Duration::from_secs(40), "seed {seed}: {:?}", began.elapsed());
    let mut ticket = gate.ticket("last");
    drop(ticket.acquire(Token).await);
    assert_eq!(gate.state().under_way(), 0, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn whatever_gives_up_leaves_nothing_behind() {
    for seed in 0..5 {
        storm(seed, None).await;
        let limit = RateLimit { count: 60, per: Duration::from_secs(1) };
        let shared = Box::new(|wanted: i64| {
            let calls = u32::try_from(wanted.clamp(0, 3)).unwrap();
            let granted = BucketGrant { calls, wait: Duration::from_millis(50) };
            Box::pin(async move {
                sleep(Duration::from_millis(2)).await;
                Some(granted)
            }) as _
        });
        storm(seed, Some(RateLimiter::new(limit, shared, Arc::new(ReplicaCount::default())))).await;
    }
}
