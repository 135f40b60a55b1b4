mod turns;

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::timeout;

use self::turns::ModelBucket;
use super::{
    super::{
        error::{CallError, TransientCause},
        gate::Gate,
    },
    share::COUNT_LIMIT,
    *,
};
use crate::telemetry::metrics::Metrics;

const LIMIT: RateLimit = RateLimit { count: 10, per: Duration::from_secs(1) };

/// A shared bucket that does not refill.
#[derive(Default)]
struct TestBucket {
    /// Permits left. Below zero, the bucket cannot be reached.
    left: AtomicI64,
    /// The numbers it was called with while it could be reached.
    requests: Mutex<Vec<i64>>,
}

impl TestBucket {
    fn with(left: i64) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(left), ..Self::default() })
    }

    fn unreachable() -> Arc<Self> {
        Self::with(-1)
    }

    fn set(&self, left: i64) {
        self.left.store(left, Ordering::Relaxed);
    }

    fn left(&self) -> i64 {
        self.left.load(Ordering::Relaxed)
    }

    fn requests(&self) -> Vec<i64> {
        self.requests.lock().clone()
    }

    fn shared(self: &Arc<Self>) -> SharedBucket {
        let bucket = Arc::clone(self);
        Box::new(move |request| {
            let bucket = Arc::clone(&bucket);
            Box::pin(async move {
                let wanted = as_number(request);
                let left = bucket.left();
                if left < 0 {
                    return None;
                }
                bucket.requests.lock().push(wanted);
                let calls = wanted.min(left);
                bucket.set(left - calls);
                let wait = Duration::from_millis(100);
                Some(BucketGrant { calls: calls.max(0) as u32, wait, turn: None })
            })
        })
    }
}

/// The calls to take out of the bucket; below zero, to put back.
fn as_number(request: BucketRequest) -> i64 {
    match request {
        BucketRequest::Take { calls, .. } => calls.into(),
        BucketRequest::PutBack(calls) => -i64::from(calls),
    }
}

/// A limiter that is one of `replicas`.
fn limiter(bucket: &Arc<TestBucket>, replicas: u32) -> RateLimiter {
    let count = Arc::new(ReplicaCount::default());
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            counter.count_requested().await;
            counter.set(replicas);
        }
    });
    RateLimiter::new(LIMIT, bucket.shared(), count)
}

/// The number of permits granted within `time`, one after the other, up to `wanted`.
async fn granted_within(limiter: &RateLimiter, wanted: usize, time: Duration) -> usize {
    let mut granted = 0;
    let _ = timeout(time, async {
        for _ in 0..wanted {
            let mut permit = limiter.request(Call::Token);
            permit.granted().await;
            permit.consume();
            granted += 1;
        }
    })
    .await;
    granted
}

#[tokio::test(start_paused = true)]
async fn permits_come_from_the_shared_bucket() {
    let bucket = TestBucket::with(3);
    let limiter = limiter(&bucket, 1);
    assert_eq!(granted_within(&limiter, 5, Duration::from_secs(60)).await, 3);
    bucket.set(2);
    assert_eq!(granted_within(&limiter, 5, Duration::from_secs(60)).await, 2);
}

#[tokio::test(start_paused = true)]
async fn replica_without_the_bucket_keeps_to_its_share() {
    let bucket = TestBucket::unreachable();
    let alone = limiter(&bucket, 1);
    assert!((99..=102).contains(&granted_within(&alone, 1_000, Duration::from_secs(10)).await));
    let one_of_four = limiter(&bucket, 4);
    assert!(
        (24..=27).contains(&granted_within(&one_of_four, 1_000, Duration::from_secs(10)).await)
    );
}

#[tokio::test(start_paused = true)]
async fn local_share_starts_empty_and_does_not_accumulate() {
    let limiter = limiter(&TestBucket::unreachable(), 1);
    assert_eq!(granted_within(&limiter, 5, Duration::from_millis(90)).await, 0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(granted_within(&limiter, 1_000, Duration::from_millis(90)).await <= 2);
}

#[tokio::test(start_paused = true)]
async fn old_replica_count_is_used_only_after_a_wait_for_a_new_one() {
    let replicas = Arc::new(ReplicaCount::default());
    replicas.set(1);
    let bucket = TestBucket::unreachable();
    let limiter = RateLimiter::new(LIMIT, bucket.shared(), Arc::clone(&replicas));
    tokio::time::sleep(COUNT_LIMIT * 2).await;
    assert_eq!(granted_within(&limiter, 10, COUNT_LIMIT).await, 0);
    assert!(granted_within(&limiter, 10, Duration::from_secs(2)).await > 5);
}

#[tokio::test(start_paused = true)]
async fn session_call_is_granted_before_an_earlier_token_call() {
    let bucket = TestBucket::with(0);
    let limiter = limiter(&bucket, 1);
    let mut token = limiter.request(Call::Token);
    let mut session = limiter.request(Call::Session);
    tokio::time::sleep(Duration::from_millis(50)).await;
    bucket.set(1);
    timeout(Duration::from_secs(5), session.granted()).await.unwrap();
    session.consume();
    assert!(timeout(Duration::from_secs(5), token.granted()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn unused_permit_goes_to_a_waiting_call_or_back_to_the_bucket() {
    let bucket = TestBucket::with(1);
    let limiter = limiter(&bucket, 1);
    let mut first = limiter.request(Call::Token);
    first.granted().await;
    let mut second = limiter.request(Call::Token);
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(first);
    second.granted().await;
    assert_eq!(bucket.requests(), [1, 1], "the permit went to the waiting call directly");
    drop(second);
    // Dropped without ever having awaited its permit.
    let third = limiter.request(Call::Session);
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(third);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bucket.requests(), [1, 1, -1]);
    assert_eq!(bucket.left(), 1);
}

#[tokio::test(start_paused = true)]
async fn unused_permit_of_the_local_share_is_not_put_into_the_shared_bucket() {
    let bucket = TestBucket::unreachable();
    let limiter = limiter(&bucket, 1);
    let mut unused = limiter.request(Call::Token);
    unused.granted().await;
    bucket.set(0);
    drop(unused);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((bucket.requests(), bucket.left()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn expired_permit_is_returned_and_requested_again() {
    let bucket = TestBucket::with(1);
    let limiter = limiter(&bucket, 1);
    let mut permit = limiter.request(Call::Token);
    permit.granted().await;
    tokio::time::sleep(MAX_PERMIT_LIFETIME / 2).await;
    permit.granted().await;
    assert_eq!(bucket.requests(), [1], "still fresh");
    tokio::time::sleep(MAX_PERMIT_LIFETIME).await;
    permit.granted().await;
    assert_eq!(bucket.requests(), [1, -1, 1]);
    permit.consume();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bucket.left(), 0, "a consumed permit is not returned");
}

#[tokio::test(start_paused = true)]
async fn permits_are_not_saved_up_during_a_pause() {
    let limiter =
        RateLimiter::new(LIMIT, ModelBucket::new().shared(), Arc::new(ReplicaCount::default()));
    let gate = Arc::new(Gate::new(Some(limiter), 64, Metrics::new()));
    let cause = TransientCause::Unavailable {
        status: reqwest::StatusCode::SERVICE_UNAVAILABLE,
        retry_after: Some(Duration::from_secs(60)),
    };
    let error = CallError::Transient { call: Call::Token, cause };
    let _ = gate.ticket("first", "w").acquire(Call::Token).await.report::<()>(Err(error));
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                let mut ticket = gate.ticket(&n.to_string(), "w");
                ticket.reserve(Call::Token);
                let permit = ticket.acquire(Call::Token).await;
                permit.report(Ok(())).unwrap();
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

#[tokio::test(start_paused = true)]
async fn waiting_requests_hold_no_permits() {
    let bucket = TestBucket::with(10);
    let gate = Arc::new(Gate::new(Some(limiter(&bucket, 1)), 64, Metrics::new()));
    let cause = TransientCause::RateLimited { retry_after: Some(Duration::from_secs(60)) };
    let error = CallError::Transient { call: Call::Token, cause };
    let _ = gate.ticket("first", "w").acquire(Call::Token).await.report::<()>(Err(error));
    for n in 0..5 {
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            let mut ticket = gate.ticket(&n.to_string(), "w");
            ticket.reserve(Call::Token);
            ticket.acquire(Call::Token).await.report(Ok(())).unwrap();
        });
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bucket.left(), 9, "only the first call has used a permit");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(bucket.left(), 4, "all calls were made after the pause");
}
