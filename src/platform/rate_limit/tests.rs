use std::sync::atomic::{AtomicI64, Ordering};

use super::{
    super::{error::CallError, gate::Gate},
    share::COUNT_LIMIT,
    *,
};
use crate::{platform::error::Transient, telemetry::metrics::Metrics};

const LIMIT: RateLimit = RateLimit { count: 10, per: Duration::from_secs(1) };

/// A shared bucket that holds so many calls, and is away while it holds none below zero.
fn bucket(left: &Arc<AtomicI64>) -> SharedBucket {
    let left = Arc::clone(left);
    Box::new(move |wanted| {
        let left = Arc::clone(&left);
        Box::pin(async move {
            let had = left.load(Ordering::Relaxed);
            if had < 0 {
                return None;
            }
            let calls = wanted.min(had);
            left.fetch_sub(calls, Ordering::Relaxed);
            Some(BucketGrant { calls: calls.max(0) as u32, wait: Duration::from_millis(100) })
        })
    })
}

fn rate(left: &Arc<AtomicI64>, replicas: u32) -> RateLimiter {
    let counted = Arc::new(ReplicaCount::default());
    let count = Arc::clone(&counted);
    tokio::spawn(async move {
        loop {
            count.count_requested().await;
            count.set(replicas);
        }
    });
    RateLimiter::new(LIMIT, bucket(left), counted)
}

/// How many of those who wait at once have leave within a time.
async fn granted_within(rate: &RateLimiter, wanted: usize, time: Duration) -> usize {
    let mut granted = 0;
    let _ = timeout(time, async {
        for _ in 0..wanted {
            let mut permit = rate.ask(Call::Token);
            permit.granted().await;
            permit.used();
            granted += 1;
        }
    })
    .await;
    granted
}

#[tokio::test(start_paused = true)]
async fn leave_comes_from_the_bucket_that_all_share() {
    let left = Arc::new(AtomicI64::new(3));
    let rate = rate(&left, 1);
    assert_eq!(granted_within(&rate, 5, Duration::from_secs(60)).await, 3);
    left.store(2, Ordering::Relaxed);
    assert_eq!(granted_within(&rate, 5, Duration::from_secs(60)).await, 2);
}

#[tokio::test(start_paused = true)]
async fn on_its_own_a_replica_keeps_to_its_share() {
    let left = Arc::new(AtomicI64::new(-1));
    let alone = rate(&left, 1);
    assert!((99..=102).contains(&granted_within(&alone, 1_000, Duration::from_secs(10)).await));
    let one_of_four = rate(&left, 4);
    assert!(
        (24..=27).contains(&granted_within(&one_of_four, 1_000, Duration::from_secs(10)).await)
    );
}

#[tokio::test(start_paused = true)]
async fn a_replica_on_its_own_begins_with_nothing_and_saves_nothing_up() {
    let left = Arc::new(AtomicI64::new(-1));
    let rate = rate(&left, 1);
    assert_eq!(granted_within(&rate, 5, Duration::from_millis(90)).await, 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(granted_within(&rate, 1_000, Duration::from_millis(90)).await <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_share_is_not_reckoned_by_an_old_count() {
    let left = Arc::new(AtomicI64::new(-1));
    let replicas = Arc::new(ReplicaCount::default());
    replicas.set(1);
    let rate = RateLimiter::new(LIMIT, bucket(&left), Arc::clone(&replicas));
    tokio::time::sleep(COUNT_LIMIT * 2).await;
    // Nobody counts: for a while that is waited for, then the old count has to do.
    assert_eq!(granted_within(&rate, 10, COUNT_LIMIT).await, 0);
    assert!(granted_within(&rate, 10, Duration::from_secs(2)).await > 5);
}

#[tokio::test(start_paused = true)]
async fn who_has_a_token_goes_first() {
    let left = Arc::new(AtomicI64::new(0));
    let rate = rate(&left, 1);
    let mut token = rate.ask(Call::Token);
    let mut session = rate.ask(Call::Session);
    tokio::time::sleep(Duration::from_millis(50)).await;
    left.store(1, Ordering::Relaxed);
    session.granted().await;
    session.used();
    assert!(timeout(Duration::from_secs(5), token.granted()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn leave_that_is_not_used_goes_to_somebody_else_or_back() {
    let left = Arc::new(AtomicI64::new(1));
    let rate = rate(&left, 1);
    let mut first = rate.ask(Call::Token);
    first.granted().await;
    let mut second = rate.ask(Call::Token);
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(first);
    second.granted().await;
    // BucketGrant and never looked at is the same.
    drop(second);
    let third = rate.ask(Call::Session);
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(third);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(left.load(Ordering::Relaxed), 1, "the bucket has it again");
}

#[tokio::test(start_paused = true)]
async fn leave_grows_stale() {
    let left = Arc::new(AtomicI64::new(1));
    let rate = rate(&left, 1);
    let mut early = rate.ask(Call::Token);
    early.granted().await;
    tokio::time::sleep(FRESH * 2).await;
    // It is given back, and asked for anew.
    early.granted().await;
    early.used();
    assert_eq!(left.load(Ordering::Relaxed), 0);
}

/// A bucket as Redis keeps it: it gains ten calls a second and holds five.
fn filling() -> SharedBucket {
    let full = Arc::new(Mutex::new(Instant::now()));
    Box::new(move |wanted| {
        let full = Arc::clone(&full);
        Box::pin(async move {
            let (now, every) = (Instant::now(), Duration::from_millis(100));
            let mut full = full.lock().unwrap();
            *full = (*full).max(now);
            let free = (now + every * 5 - *full).as_millis() as i64 / 100;
            let granted = wanted.min(free);
            *full = match u32::try_from(granted) {
                Ok(granted) => *full + every * granted,
                Err(_) => (*full - every * granted.unsigned_abs() as u32).max(now),
            };
            let wait = (*full + every).saturating_duration_since(now + every * 5);
            Some(BucketGrant { calls: granted.max(0) as u32, wait })
        })
    })
}

#[tokio::test(start_paused = true)]
async fn leave_is_not_saved_up_while_the_gate_holds_calls_back() {
    let rate = RateLimiter::new(LIMIT, filling(), Arc::new(ReplicaCount::default()));
    let gate = Arc::new(Gate::new(Some(rate), Metrics::new()));
    let later = CallError::Transient {
        call: Call::Token,
        why: Transient::Timeout,
        retry_after: Some(Duration::from_secs(60)),
    };
    let _ = gate.ticket("first").acquire(Call::Token).await.report::<()>(Err(later));
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                let mut ticket = gate.ticket(&n.to_string());
                ticket.reserve(Call::Token);
                let pass = ticket.acquire(Call::Token).await;
                pass.report(Ok(())).unwrap();
                Instant::now()
            })
        })
        .collect();
    let mut times = vec![];
    for call in calls {
        times.push(call.await.unwrap());
    }
    times.sort();
    let within =
        |from: Instant| times.iter().filter(|at| **at >= from && **at - from < LIMIT.per).count();
    let most = times.iter().map(|from| within(*from)).max().unwrap();
    assert!(most <= 20, "{most} in a second");
    assert!(times[99] - times[0] < Duration::from_secs(11), "{:?}", times[99] - times[0]);
}
