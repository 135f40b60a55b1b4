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
    platform::{
        error::{CallError, TransientCause},
        gate::{Gate, ProbeReply, ProbeRequest, SharedProbes},
    },
    telemetry::metrics::Metrics,
};

const FAILED: CallError =
    CallError::Transient { call: Token, cause: TransientCause::BrokenAnswer("nothing") };

/// What the scripts keep in Redis.
#[derive(Default)]
struct Shared {
    permit: Option<Instant>,
    answer: Option<(Instant, u32)>,
}

/// The platform and Redis that the replicas share.
struct Fleet {
    is_up: AtomicBool,
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
        let fleet = Arc::new_cyclic(|fleet: &std::sync::Weak<Self>| {
            let gates = (0..replicas).map(|_| {
                let fleet = fleet.clone();
                let shared: SharedProbes = Box::new(move |request| {
                    let fleet = fleet.upgrade();
                    Box::pin(async move { fleet?.redis(request).await })
                });
                Arc::new(Gate::new(None, 64, Metrics::new()).with_shared_probes(shared))
            });
            Self {
                is_up: AtomicBool::new(false),
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
                ticket.acquire(Token).await.report::<()>(Err(FAILED)).unwrap_err();
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
                    while !fleet.call(&mut ticket).await {}
                });
            }
        }
    }

    async fn call(&self, ticket: &mut crate::platform::gate::Ticket<'_>) -> bool {
        let permit = ticket.acquire(Token).await;
        self.calls.lock().push(Instant::now());
        sleep(Duration::from_millis(100)).await;
        let answer = if self.is_up.load(Ordering::Relaxed) { Ok(()) } else { Err(FAILED) };
        permit.report(answer).is_ok()
    }

    async fn redis(&self, request: ProbeRequest) -> Option<ProbeReply> {
        let takes = *self.redis_takes.lock();
        sleep(takes).await;
        if !self.has_redis.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        let mut shared = self.shared.lock();
        let Shared { permit, answer } = &mut *shared;
        let mut reply = ProbeReply { is_granted: false, wait: Duration::ZERO, answered_ago: None };
        if request == ProbeRequest::Answered {
            *answer = Some((now, answer.map_or(0, |(_, added)| added) + 2));
        }
        reply.answered_ago = answer.map(|(at, _)| now - at);
        if request == ProbeRequest::HalfOpenPermit
            && let Some((_, added @ 1..)) = answer
        {
            *added -= 1;
            reply.is_granted = true;
        } else if matches!(request, ProbeRequest::Permit | ProbeRequest::HalfOpenPermit) {
            let next = permit.map_or(now, |at| at + Duration::from_millis(260));
            reply.is_granted = next <= now;
            reply.wait = next.saturating_duration_since(now);
            if reply.is_granted {
                *permit = Some(now);
            }
        }
        Some(reply)
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
    fleet.redis(ProbeRequest::Permit).await.unwrap();
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
    fleet.redis(ProbeRequest::Answered).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(fleet.gates[0].is_breaker_open());
    assert!(!fleet.gates[1].is_breaker_open());
}

#[tokio::test(start_paused = true)]
async fn failed_probe_of_a_half_open_breaker_opens_it_until_the_next_answer() {
    let fleet = Fleet::down(1).await;
    let gate = &fleet.gates[0];
    sleep(2 * SECOND).await;
    fleet.redis(ProbeRequest::Answered).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(!gate.is_breaker_open());
    let mut ticket = gate.ticket("held", "w");
    let probe = ticket.acquire(Token).await;
    assert!(probe.is_probe());
    probe.report::<()>(Err(FAILED)).unwrap_err();
    assert!(gate.is_breaker_open());
    sleep(9 * SECOND).await;
    assert!(gate.is_breaker_open(), "that answer is old");
    fleet.redis(ProbeRequest::Answered).await.unwrap();
    sleep(3 * SECOND).await;
    assert!(!gate.is_breaker_open());
}
