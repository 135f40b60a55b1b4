//! Replicas that share the bucket of Redis, as a model.

use std::sync::atomic::AtomicUsize;

use tokio::{task::JoinSet, time::sleep};

use super::*;
use crate::rate_model::RateModel;

const EPOCH_MICROS: i64 = 1_700_000_000_000_000;
/// The time to Redis and back.
const ROUND_TRIP: Duration = Duration::from_millis(2);

/// The bucket of `LIMIT` in Redis.
pub(super) struct ModelBucket {
    model: Mutex<RateModel>,
    started: Instant,
    scripts: AtomicUsize,
}

impl ModelBucket {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(RateModel::new(100_000, 5, 1, 250_000)),
            started: Instant::now(),
            scripts: AtomicUsize::new(0),
        })
    }

    pub(super) fn shared(self: &Arc<Self>) -> SharedBucket {
        let bucket = Arc::clone(self);
        Box::new(move |request| {
            let bucket = Arc::clone(&bucket);
            Box::pin(async move {
                sleep(ROUND_TRIP / 2).await;
                let grant = bucket.answer(request);
                sleep(ROUND_TRIP / 2).await;
                Some(grant)
            })
        })
    }

    fn answer(&self, request: BucketRequest) -> BucketGrant {
        self.scripts.fetch_add(1, Ordering::Relaxed);
        let now = EPOCH_MICROS + i64::try_from(self.started.elapsed().as_micros()).unwrap();
        let turn = match request {
            BucketRequest::Take { turn: Some(turn), .. } => (turn.at as i64, turn.calls.into()),
            _ => (0, 0),
        };
        let reply = self.model.lock().take(now, as_number(request), turn);
        let (at, calls) = reply.turn;
        BucketGrant {
            calls: reply.granted.max(0) as u32,
            wait: Duration::from_micros(reply.wait_micros as u64),
            turn: (calls > 0).then_some(Turn { at: at as u64, calls: calls as u32 }),
        }
    }
}

/// A replica that always has three calls waiting. It ends when it is dropped.
struct BusyReplica {
    calls: Arc<AtomicUsize>,
    _waiting: JoinSet<()>,
}

impl BusyReplica {
    fn start(bucket: &Arc<ModelBucket>) -> Self {
        let limiter = RateLimiter::new(LIMIT, bucket.shared(), Arc::default());
        let limiter = Arc::new(limiter);
        let calls = Arc::new(AtomicUsize::new(0));
        let mut waiting = JoinSet::new();
        for _ in 0..3 {
            let (limiter, calls) = (Arc::clone(&limiter), Arc::clone(&calls));
            waiting.spawn(async move {
                loop {
                    let mut permit = limiter.request(Call::Token);
                    permit.granted().await;
                    permit.consume();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { calls, _waiting: waiting }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

fn total(replicas: &[BusyReplica]) -> usize {
    replicas.iter().map(BusyReplica::calls).sum()
}

#[tokio::test(start_paused = true)]
async fn busy_replicas_get_the_same_share_with_a_script_for_each_call() {
    let bucket = ModelBucket::new();
    let replicas: Vec<_> = (0..30).map(|_| BusyReplica::start(&bucket)).collect();
    sleep(Duration::from_secs(100)).await;
    let calls: Vec<_> = replicas.iter().map(BusyReplica::calls).collect();
    // The bucket was full at the start.
    assert!(calls.iter().all(|calls| (32..=38).contains(calls)), "{calls:?}");
    let total = total(&replicas);
    assert!((1_000..=1_005).contains(&total), "{total}");
    let scripts = bucket.scripts.load(Ordering::Relaxed);
    assert!(scripts <= total + 60, "{scripts} scripts for {total} calls");
}

#[tokio::test(start_paused = true)]
async fn turns_of_replicas_that_ended_are_used_by_the_others() {
    let bucket = ModelBucket::new();
    let mut replicas: Vec<_> = (0..300).map(|_| BusyReplica::start(&bucket)).collect();
    sleep(Duration::from_secs(5)).await;
    // Every other turn of the next 30 s has no owner.
    let mut number = 0;
    replicas.retain(|_| {
        number += 1;
        number % 2 == 0
    });
    let before = total(&replicas);
    sleep(Duration::from_secs(20)).await;
    let calls = total(&replicas) - before;
    assert!((190..=205).contains(&calls), "{calls}");
    // One replica is left, and its turn is half a minute away.
    replicas.truncate(1);
    sleep(MAX_TURN_WAIT).await;
    let before = total(&replicas);
    sleep(Duration::from_secs(10)).await;
    let calls = total(&replicas) - before;
    // It may wait once more for `MAX_TURN_WAIT`, after its own turn.
    assert!((45..=105).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn redis_that_forgets_the_line_costs_no_turn_and_no_call() {
    let bucket = ModelBucket::new();
    let replicas: Vec<_> = (0..30).map(|_| BusyReplica::start(&bucket)).collect();
    sleep(Duration::from_secs(10)).await;
    let before: Vec<_> = replicas.iter().map(BusyReplica::calls).collect();
    bucket.model.lock().clear();
    sleep(Duration::from_secs(60)).await;
    let calls: Vec<_> =
        replicas.iter().zip(before).map(|(replica, before)| replica.calls() - before).collect();
    assert!(calls.iter().all(|calls| (18..=24).contains(calls)), "{calls:?}");
    let total: usize = calls.iter().sum();
    assert!((595..=606).contains(&total), "{total}");
}

#[tokio::test(start_paused = true)]
async fn replica_that_wants_one_call_at_a_time_gets_its_share() {
    let bucket = ModelBucket::new();
    let _busy: Vec<_> = (0..9).map(|_| BusyReplica::start(&bucket)).collect();
    sleep(Duration::from_secs(5)).await;
    let limiter = RateLimiter::new(LIMIT, bucket.shared(), Arc::default());
    let calls = granted_within(&limiter, 1_000, Duration::from_secs(60)).await;
    assert!((55..=61).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn first_call_asks_at_once_though_the_one_before_it_was_to_ask_later() {
    let bucket = ModelBucket::new();
    let busy: Vec<_> = (0..300).map(|_| BusyReplica::start(&bucket)).collect();
    sleep(Duration::from_secs(5)).await;
    let limiter = RateLimiter::new(LIMIT, bucket.shared(), Arc::default());
    let mut cancelled = limiter.request(Call::Token);
    // Its turn is half a minute away.
    assert!(timeout(Duration::from_secs(1), cancelled.granted()).await.is_err());
    drop((cancelled, busy));
    sleep(MAX_TURN_WAIT - Duration::from_secs(3)).await;
    let mut permit = limiter.request(Call::Token);
    timeout(Duration::from_secs(1), permit.granted()).await.unwrap();
}
