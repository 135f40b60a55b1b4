//! A replica: the real gate, rate limit, single-flight and patience, between models of what surrounds them.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    platform::Platform,
    redis::{Claim, Redis},
};
use crate::{
    cache::Patience,
    config::RateLimit,
    handoff::{Joined, SingleFlight},
    platform::{FailedCall, FailureScope, Gate, RateLimiter, ReplicaCount, Ticket},
    retry::{Backoff, RetrySchedule},
    session::Call,
    telemetry::metrics::Metrics,
};

const RETRY_BUDGET: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_secs(10);
/// How long RabbitMQ takes to confirm and deliver.
const BROKER: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(3);
/// `handoff::calls::MIN_STAY`.
const MIN_STAY: Duration = Duration::from_secs(1);
const LEASE_EXTENSION: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) user: u64,
    pub(super) published: Instant,
}

/// RabbitMQ's queue. Consumers get its messages in turn.
pub(super) struct Queue {
    messages: Mutex<VecDeque<Request>>,
    available: Semaphore,
}

impl Queue {
    fn push(&self, request: Request) {
        self.messages.lock().push_back(request);
        self.available.add_permits(1);
    }

    async fn pop(&self) -> Request {
        self.available.acquire().await.unwrap().forget();
        self.messages.lock().pop_front().unwrap()
    }

    pub(super) fn depth(&self) -> usize {
        self.messages.lock().len()
    }
}

pub(super) struct World {
    pub(super) redis: Redis,
    pub(super) platform: Platform,
    pub(super) queue: Queue,
    limit: Option<RateLimit>,
    slots: u16,
    replicas: AtomicUsize,
    holders: AtomicU64,
    /// How long each served request waited.
    pub(super) served: Mutex<Vec<Duration>>,
    /// Attempts that failed.
    pub(super) retried: AtomicUsize,
}

/// Why a request was not served.
#[derive(Clone, Copy)]
enum Unserved {
    MadeRoom,
    Failed,
}

pub(super) struct Replica {
    world: Arc<World>,
    number: usize,
    gate: Arc<Gate>,
    flights: SingleFlight<Result<u64, Unserved>>,
    in_flight: AtomicUsize,
    stopping: CancellationToken,
}

/// A replica that runs until it is stopped or dropped.
pub(super) struct Running {
    slots: JoinSet<()>,
    background: JoinSet<()>,
    stopping: CancellationToken,
}

impl World {
    pub(super) fn new(slots: u16, limit: Option<RateLimit>) -> Arc<Self> {
        let queue = Queue { messages: Mutex::default(), available: Semaphore::new(0) };
        Arc::new(Self {
            redis: Redis::new(limit),
            platform: Platform::new(),
            queue,
            limit,
            slots,
            replicas: AtomicUsize::new(0),
            holders: AtomicU64::new(0),
            served: Mutex::default(),
            retried: AtomicUsize::new(0),
        })
    }

    pub(super) fn publish(&self, user: u64) {
        self.queue.push(Request { user, published: Instant::now() });
    }

    /// Publishes a request of a new user at this rate.
    pub(super) async fn publish_at(
        &self,
        per_second: u32,
        duration: Duration,
        first_user: u64,
    ) -> u64 {
        let end = Instant::now() + duration;
        let mut user = first_user;
        while Instant::now() < end {
            self.publish(user);
            user += 1;
            sleep(Duration::from_secs(1) / per_second).await;
        }
        user
    }

    /// The number of a replica that starts.
    pub(super) fn next_number(&self) -> usize {
        self.replicas.fetch_add(1, Ordering::Relaxed)
    }

    /// The part of a replica that keeps the rate limit.
    pub(super) fn rate_limiter(self: &Arc<Self>) -> Option<RateLimiter> {
        let world = Arc::clone(self);
        let bucket = move |request| {
            let world = Arc::clone(&world);
            Box::pin(async move { world.redis.take_calls(request).await }) as _
        };
        // No scenario has a rate limit and no Redis, so that replicas are not counted.
        let count = Arc::new(ReplicaCount::default());
        self.limit.map(|limit| RateLimiter::new(limit, Box::new(bucket), count))
    }

    pub(super) fn start_replica(self: &Arc<Self>) -> Running {
        let number = self.next_number();
        let mut background = JoinSet::new();
        let limiter = self.rate_limiter();
        let world = Arc::clone(self);
        let gate = Gate::new(limiter, self.slots, Metrics::new()).with_shared_probes(Box::new(
            move |request| {
                let world = Arc::clone(&world);
                Box::pin(async move { world.redis.probes(request).await })
            },
        ));
        let replica = Arc::new(Replica {
            world: Arc::clone(self),
            number,
            gate: Arc::new(gate),
            flights: SingleFlight::new(),
            in_flight: AtomicUsize::new(0),
            stopping: CancellationToken::new(),
        });
        let gate = Arc::clone(&replica.gate);
        background.spawn(async move { gate.share_probes().await });
        background.spawn(Arc::clone(&replica).probe_when_idle());
        let mut slots = JoinSet::new();
        for _ in 0..self.slots {
            slots.spawn(Arc::clone(&replica).fill_slot());
        }
        Running { slots, background, stopping: replica.stopping.clone() }
    }
}

impl Running {
    /// Takes no more requests, finishes those in flight, and ends.
    pub(super) async fn stop(mut self) {
        self.stopping.cancel();
        while self.slots.join_next().await.is_some() {}
        self.background.abort_all();
    }
}

impl Replica {
    async fn fill_slot(self: Arc<Self>) {
        loop {
            let request = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                request = self.world.queue.pop() => request,
            };
            sleep(BROKER).await;
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            let served = Box::pin(self.serve(request)).await;
            // The event, the copy or the dead letter is confirmed.
            sleep(BROKER).await;
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            match served {
                Ok(_) => self.world.served.lock().push(request.published.elapsed()),
                Err(Unserved::MadeRoom) => self.world.queue.push(request),
                Err(Unserved::Failed) => {
                    self.world.retried.fetch_add(1, Ordering::Relaxed);
                    let world = Arc::clone(&self.world);
                    tokio::spawn(async move {
                        sleep(RETRY_DELAY).await;
                        world.queue.push(request);
                    });
                }
            }
        }
    }

    async fn probe_when_idle(self: Arc<Self>) {
        loop {
            let mut ticket = self.gate.idle_ticket().await;
            if let Some(permit) = ticket.acquire_idle_probe().await {
                let answer = self.world.platform.call(self.number, Call::Token).await;
                let _ = permit.report(answer);
            }
        }
    }

    async fn serve(&self, request: Request) -> Result<u64, Unserved> {
        let key = request.user.to_string();
        loop {
            match self.flights.join(&key) {
                Joined::Leader(leader) => {
                    let served = self.claim_or_make(request.user).await;
                    leader.finish(served);
                    return served;
                }
                Joined::Follower(follower) => {
                    if let Some(served) = follower.result().await {
                        return served;
                    }
                }
            }
        }
    }

    /// As `handoff::Handoff::claim_or_make`.
    async fn claim_or_make(&self, user: u64) -> Result<u64, Unserved> {
        let redis = &self.world.redis;
        let holder = self.world.holders.fetch_add(1, Ordering::Relaxed);
        let mut ticket = self.gate.ticket(&user.to_string(), "w");
        ticket.reserve(Call::Token);
        let mut schedule = RetrySchedule::new(RETRY_BUDGET);
        let mut poll = Backoff::between(Duration::from_millis(20), Duration::from_millis(250));
        let mut patience = Patience::new(PATIENCE);
        loop {
            let since = Instant::now();
            match redis.claim(user, holder).await {
                Some(Claim::Link(session)) => return Ok(session),
                Some(Claim::Lease) => {
                    let made = tokio::select! {
                        made = self.make(&mut ticket, &mut schedule) => made,
                        () = self.until_lease_lost(user, holder) => continue,
                    };
                    match made {
                        Ok(session) => self.store(user, session).await,
                        Err(_) => redis.release(user, holder).await,
                    }
                    return made;
                }
                Some(Claim::LeaseTaken) => {
                    ticket.cancel_reservation();
                    sleep(poll.next_delay()).await;
                }
                None => {
                    ticket.cancel_reservation();
                    let until = patience.until(since, redis.unavailable_since());
                    let is_back = Instant::now() < until
                        && timeout_at(until, redis.until_available()).await.is_ok();
                    patience.spend(since);
                    schedule.extend(since.elapsed());
                    if !is_back {
                        let session = self.make(&mut ticket, &mut schedule).await?;
                        self.store(user, session).await;
                        return Ok(session);
                    }
                }
            }
        }
    }

    /// Extends a lease until another holder has it.
    async fn until_lease_lost(&self, user: u64, holder: u64) {
        loop {
            sleep(LEASE_EXTENSION).await;
            if self.world.redis.extend(user, holder).await == Some(false) {
                return;
            }
        }
    }

    /// Stores a link; later, if Redis is unavailable.
    async fn store(&self, user: u64, session: u64) {
        if self.world.redis.store(user, session).await.is_none() {
            let world = Arc::clone(&self.world);
            tokio::spawn(async move {
                while world.redis.store(user, session).await.is_none() {
                    world.redis.until_available().await;
                }
            });
        }
    }

    /// As `handoff::Calls` makes the calls.
    async fn make(
        &self,
        ticket: &mut Ticket<'_>,
        schedule: &mut RetrySchedule,
    ) -> Result<u64, Unserved> {
        let mut last_call = Duration::ZERO;
        let mut made = 0;
        for call in [Call::Token, Call::Session] {
            loop {
                let arrived = Instant::now();
                let place = ticket.place();
                let is_full = || self.in_flight.load(Ordering::Relaxed) >= self.world.slots.into();
                let min_stay = if last_call.is_zero() { MIN_STAY } else { Duration::ZERO };
                let turn = RETRY_BUDGET + last_call;
                let permit = tokio::select! {
                    biased;
                    permit = Box::pin(ticket.acquire(call)) => permit,
                    _ = place.until_room_is_needed(is_full, min_stay, turn) => {
                        return Err(Unserved::MadeRoom);
                    }
                };
                schedule.extend(arrived.elapsed());
                if call == Call::Token {
                    ticket.reserve(Call::Session);
                }
                let began = Instant::now();
                let answer = self.world.platform.call(self.number, call).await;
                match permit.report(answer) {
                    Ok(session) => {
                        made = session;
                        break;
                    }
                    Err(FailedCall { scope: FailureScope::Pause, .. }) => {
                        last_call = began.elapsed();
                        schedule.extend(last_call);
                    }
                    Err(FailedCall { scope, .. }) => {
                        last_call = began.elapsed();
                        ticket.cancel_reservation();
                        if let Some(delay) = schedule.next_delay() {
                            sleep(delay).await;
                            continue;
                        }
                        let wait = self.gate.outage_wait(call, began);
                        let is_outage = scope == FailureScope::Undecided
                            && timeout(wait, self.gate.until_paused()).await.is_ok();
                        if !is_outage {
                            return Err(Unserved::Failed);
                        }
                        schedule.extend(began.elapsed());
                    }
                }
            }
        }
        Ok(made)
    }
}
