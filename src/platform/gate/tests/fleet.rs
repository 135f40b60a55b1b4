//! Several replicas in an outage: the permits to probe that they share, and what ends it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    config::RateLimit,
    platform::{
        error::{CallError, TransientCause},
        gate::{CallPermit, Gate, PermitKind, ProbeReply, ProbeRequest, SharedProbes, Ticket},
        rate_limit::{BucketGrant, BucketRequest, RateLimiter, ReplicaCount},
    },
    telemetry::metrics::Metrics,
};

const FAILED: CallError =
    CallError::Transient { call: Token, cause: TransientCause::BrokenAnswer("nothing") };

const PERMIT: ProbeRequest =
    ProbeRequest::Permit(PermitKind { is_half_open: false, is_second_call: false });
const ANSWERED: ProbeRequest = ProbeRequest::Answered { calls: 1 };
const INTERVAL: Duration = Duration::from_millis(260);

/// What the scripts keep in Redis.
#[derive(Default)]
struct Shared {
    /// Until when the last permit keeps others back.
    permit: Option<Instant>,
    answer: Option<(Instant, u32)>,
    /// When the token bucket of the rate limit will be full again.
    bucket_full: Option<Instant>,
    half_open_requests: usize,
}

/// The platform and Redis that the replicas share.
struct Fleet {
    is_up: AtomicBool,
    /// The call that fails while the platform is down; the other one is answered well.
    failing: Call,
    has_redis: AtomicBool,
    redis_takes: Mutex<Duration>,
    shared: Mutex<Shared>,
    calls: Mutex<Vec<Instant>>,
    gates: Vec<Arc<Gate>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Fleet {
    /// Replicas whose breakers are open.
    async fn down(replicas: usize) -> Arc<Self> {
        Self::failing(replicas, Token, None).await
    }

    async fn failing(replicas: usize, failing: Call, limit: Option<RateLimit>) -> Arc<Self> {
        let fleet = Arc::new_cyclic(|fleet: &std::sync::Weak<Self>| {
            let gates = (0..replicas).map(|_| {
                let limiter = limit.map(|limit| {
                    let fleet = fleet.clone();
                    let bucket = Box::new(move |request| {
                        let fleet = fleet.upgrade();
                        Box::pin(async move { fleet?.bucket(limit, request).await }) as _
                    });
                    RateLimiter::new(limit, bucket, Arc::new(ReplicaCount::default()))
                });
                let fleet = fleet.clone();
                let shared: SharedProbes = Box::new(move |request| {
                    let fleet = fleet.upgrade();
                    Box::pin(async move { fleet?.redis(request).await })
                });
                Arc::new(Gate::new(limiter, 64, Metrics::new()).with_shared_probes(shared))
            });
            Self {
                is_up: AtomicBool::new(false),
                failing,
                has_redis: AtomicBool::new(true),
                redis_takes: Mutex::new(Duration::from_millis(1)),
                shared: Mutex::default(),
                calls: Mutex::default(),
                gates: gates.collect(),
                tasks: Mutex::default(),
            }
        });
        for gate in &fleet.gates {
            for user in 0..5 {
                let mut ticket = gate.ticket(&user.to_string(), "w");
                ticket.acquire(failing).await.report::<()>(Err(FAILED)).unwrap_err();
            }
            let gate = Arc::clone(gate);
            fleet.tasks.lock().spawn(async move { gate.share_probes().await });
        }
        fleet
    }

    /// Has each replica hold this many requests, which call the platform until they are served.
    fn hold(self: &Arc<Self>, requests: usize) {
        for gate in &self.gates {
            for user in 0..requests {
                let (fleet, gate) = (Arc::clone(self), Arc::clone(gate));
                self.tasks.lock().spawn(async move {
                    let mut ticket = gate.ticket(&format!("held-{user}"), "w");
                    while !fleet.probe(&mut ticket).await {}
                });
            }
        }
    }

    /// Has each replica that holds no request probe.
    fn probe_when_idle(self: &Arc<Self>) {
        for gate in &self.gates {
            let (fleet, gate) = (Arc::clone(self), Arc::clone(gate));
            self.tasks.lock().spawn(async move {
                loop {
                    let mut ticket = gate.idle_ticket().await;
                    if let Some(permit) = ticket.acquire_idle_probe().await {
                        fleet.answer(permit, Token).await;
                    }
                }
            });
        }
    }

    /// Makes the calls of a session, up to the one that fails. Each time with another token, as requests do that are new.
    async fn probe(&self, ticket: &mut Ticket<'_>) -> bool {
        if self.failing == Session && !self.call(ticket, Token).await {
            return false;
        }
        self.call(ticket, self.failing).await
    }

    async fn call(&self, ticket: &mut Ticket<'_>, call: Call) -> bool {
        let permit = ticket.acquire(call).await;
        self.answer(permit, call).await
    }

    async fn answer(&self, permit: CallPermit<'_>, call: Call) -> bool {
        self.calls.lock().push(Instant::now());
        sleep(Duration::from_millis(100)).await;
        let is_good = call != self.failing || self.is_up.load(Ordering::Relaxed);
        permit.report(if is_good { Ok(()) } else { Err(FAILED) }).is_ok()
    }

    async fn redis(&self, request: ProbeRequest) -> Option<ProbeReply> {
        let takes = *self.redis_takes.lock();
        sleep(takes).await;
        if !self.has_redis.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        let mut shared = self.shared.lock();
        let Shared { permit, answer, half_open_requests, .. } = &mut *shared;
        if let ProbeRequest::Answered { calls } = request {
            *answer = Some((now, answer.map_or(0, |(_, added)| added) + 2 * calls));
        }
        let mut reply =
            ProbeReply { answered_ago: answer.map(|(at, _)| now - at), ..ProbeReply::default() };
        let ProbeRequest::Permit(kind) = request else { return Some(reply) };
        *half_open_requests += usize::from(kind.is_half_open);
        if kind.is_half_open
            && let Some((_, added @ 1..)) = answer
        {
            *added -= 1;
            reply.is_granted = true;
        } else {
            let until = permit.unwrap_or(now).max(now);
            reply.wait = until - now;
            let ahead = if kind.is_second_call { 4 * INTERVAL } else { Duration::ZERO };
            reply.is_granted = reply.wait <= ahead;
            if reply.is_granted {
                *permit = Some(until + INTERVAL);
            }
        }
        Some(reply)
    }

    async fn bucket(&self, limit: RateLimit, request: BucketRequest) -> Option<BucketGrant> {
        sleep(Duration::from_millis(1)).await;
        let now = Instant::now();
        let every = limit.per / limit.count;
        let most = every * (limit.count / 2).max(1);
        let mut shared = self.shared.lock();
        let full = shared.bucket_full.unwrap_or(now).max(now);
        let wanted = match request {
            BucketRequest::Take { calls, .. } => calls,
            BucketRequest::PutBack(calls) => {
                shared.bucket_full = Some((full - every * calls).max(now));
                return Some(BucketGrant { calls: 0, wait: Duration::ZERO, turn: None });
            }
        };
        let mut calls = 0;
        let mut until = full;
        while calls < wanted && until + every <= now + most {
            calls += 1;
            until += every;
        }
        shared.bucket_full = Some(until);
        let wait = (until + every).saturating_duration_since(now + most);
        Some(BucketGrant { calls, wait, turn: None })
    }

    fn most_calls_in(&self, window: Duration) -> usize {
        let calls = self.calls.lock();
        let within = |first: &Instant| {
            calls.iter().filter(|at| **at >= *first && **at - *first < window).count()
        };
        calls.iter().map(within).max().unwrap_or_default()
    }

    fn open(&self) -> usize {
        self.gates.iter().filter(|gate| gate.is_breaker_open()).count()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn fleet_of_any_size_sends_at_most_five_probes_a_second() {
    for (replicas, redis_takes) in [(1, 1), (3, 1), (12, 1), (100, 1), (100, 240)] {
        let fleet = Fleet::down(replicas).await;
        *fleet.redis_takes.lock() = Duration::from_millis(redis_takes);
        fleet.hold(4);
        sleep(60 * SECOND).await;
        let most = fleet.most_calls_in(SECOND);
        assert!(most <= 5, "{replicas} replicas: {most} calls in a second");
        let calls = fleet.calls.lock().len();
        let least = (60 * replicas / 3).min(60 * 3);
        assert!(calls >= least, "{replicas} replicas: only {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn fleet_sends_at_most_five_calls_a_second_while_only_session_calls_fail() {
    for (replicas, redis_takes) in [(1, 1), (3, 1), (100, 1), (100, 240)] {
        let fleet = Fleet::failing(replicas, Session, None).await;
        *fleet.redis_takes.lock() = Duration::from_millis(redis_takes);
        fleet.hold(4);
        sleep(60 * SECOND).await;
        let most = fleet.most_calls_in(SECOND);
        assert!(most <= 5, "{replicas} replicas: {most} calls in a second");
        let calls = fleet.calls.lock().len();
        let least = (60 * replicas * 2 / 3).min(60 * 3);
        assert!(calls >= least, "{replicas} replicas: only {calls} calls");
        // Second calls go first, so that each token is used.
        fleet.is_up.store(true, Ordering::Relaxed);
        let returned = Instant::now();
        while fleet.open() == replicas {
            sleep(Duration::from_millis(10)).await;
        }
        let took = returned.elapsed();
        assert!(took <= 3 * SECOND, "{replicas} replicas: served after {took:?}");
        sleep(3 * SECOND).await;
        assert_eq!(fleet.open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_without_a_request_leave_the_permits_after_an_answer_to_the_others() {
    let fleet = Fleet::down(100).await;
    fleet.probe_when_idle();
    sleep(10 * SECOND).await;
    let calls = fleet.calls.lock().len();
    assert!(calls >= 30, "only {calls} idle probes");
    fleet.redis(ANSWERED).await.unwrap();
    sleep(3 * SECOND).await;
    assert_eq!(fleet.open(), 0);
    sleep(10 * SECOND).await;
    let requests = fleet.shared.lock().half_open_requests;
    assert_eq!(requests, 0, "for nothing");
}

#[tokio::test(start_paused = true)]
async fn neither_permits_to_probe_nor_those_of_a_slow_rate_limit_are_lost() {
    for (replicas, failing) in [(1, Token), (20, Token), (20, Session)] {
        let limit = RateLimit { count: 30, per: Duration::from_secs(60) };
        let fleet = Fleet::failing(replicas, failing, Some(limit)).await;
        fleet.hold(4);
        // What the bucket holds at first.
        sleep(30 * SECOND).await;
        let before = fleet.calls.lock().len();
        sleep(120 * SECOND).await;
        let calls = fleet.calls.lock().len() - before;
        // A single replica probes every 2.5 s.
        let least = if replicas == 1 { 45 } else { 54 };
        assert!((least..=61).contains(&calls), "{replicas} replicas: {calls} calls in two minutes");
        let most = fleet.most_calls_in(SECOND);
        assert!(most <= 5, "{replicas} replicas: {most} calls in a second");
    }
}

#[tokio::test(start_paused = true)]
async fn one_good_answer_half_opens_all_breakers_and_calls_grow_with_the_answers() {
    let fleet = Fleet::down(200).await;
    fleet.hold(16);
    sleep(30 * SECOND).await;
    fleet.is_up.store(true, Ordering::Relaxed);
    let returned = Instant::now();
    sleep(4 * SECOND).await;
    assert_eq!(fleet.open(), 0);
    // Calls of 100 ms each: in each such time, at most a few times as many begin as were answered before.
    let calls = fleet.calls.lock().clone();
    let begun = |from: u32, to: u32| {
        let at = |step| returned + Duration::from_millis(100) * step;
        calls.iter().filter(|call| **call >= at(from) && **call < at(to)).count()
    };
    for step in 1..40 {
        let (before, now) = (begun(0, step), begun(step, step + 1));
        assert!(now <= 4 + 3 * before, "{now} calls begin after {before}");
    }
    sleep(10 * SECOND).await;
    // The probe under way at the return may be the first of them.
    let since = returned - Duration::from_millis(100);
    let begun = fleet.calls.lock().iter().filter(|call| **call >= since).count();
    assert!(begun >= 200 * 16, "{begun} served");
}

#[tokio::test(start_paused = true)]
async fn replicas_without_redis_probe_by_themselves() {
    let fleet = Fleet::down(20).await;
    fleet.has_redis.store(false, Ordering::Relaxed);
    fleet.hold(4);
    sleep(30 * SECOND).await;
    let calls = fleet.calls.lock().len();
    assert!((20 * 10..=20 * 15).contains(&calls), "{calls}");
    fleet.is_up.store(true, Ordering::Relaxed);
    sleep(3 * SECOND).await;
    assert_eq!(fleet.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn replica_probes_by_itself_if_nothing_answers_its_wish() {
    let fleet = Fleet::down(1).await;
    fleet.tasks.lock().abort_all();
    let gate = &fleet.gates[0];
    let mut ticket = gate.ticket("held", "w");
    let probe = timeout(6 * SECOND, ticket.acquire(Token)).await.expect("a probe");
    assert!(probe.is_probe());
}

#[tokio::test(start_paused = true)]
async fn killed_holder_of_a_permit_does_not_stop_the_others() {
    let fleet = Fleet::down(2).await;
    // A replica takes the permit and is killed.
    fleet.redis(PERMIT).await.unwrap();
    fleet.hold(4);
    sleep(2 * SECOND).await;
    assert!(!fleet.calls.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn refused_key_is_not_shared() {
    let fleet = Fleet::down(2).await;
    let refused = CallError::Refused { call: Token, status: reqwest::StatusCode::UNAUTHORIZED };
    sleep(SECOND).await;
    let mut ticket = fleet.gates[0].ticket("held", "w");
    ticket.acquire(Token).await.report::<()>(Err(refused)).unwrap_err();
    // The platform answers the other one.
    fleet.redis(ANSWERED).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(fleet.gates[0].is_breaker_open());
    assert!(!fleet.gates[1].is_breaker_open());
}

#[tokio::test(start_paused = true)]
async fn failed_probe_of_a_half_open_breaker_opens_it_until_the_next_answer() {
    let fleet = Fleet::down(1).await;
    let gate = &fleet.gates[0];
    sleep(2 * SECOND).await;
    fleet.redis(ANSWERED).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(!gate.is_breaker_open());
    let mut ticket = gate.ticket("held", "w");
    let probe = ticket.acquire(Token).await;
    assert!(probe.is_probe());
    probe.report::<()>(Err(FAILED)).unwrap_err();
    assert!(gate.is_breaker_open());
    sleep(9 * SECOND).await;
    assert!(gate.is_breaker_open(), "that answer is old");
    fleet.redis(ANSWERED).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(!gate.is_breaker_open());
}
