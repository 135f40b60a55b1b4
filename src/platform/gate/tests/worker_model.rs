//! A model of a worker in front of the gate: slots, a queue, retries, and requests that make room for others.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    platform::{
        error::{CallError, TransientCause},
        gate::Gate,
    },
    telemetry::metrics::Metrics,
};

/// What the platform does with a request's session calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Served,
    /// Fails after this long.
    Fails(Duration),
}

#[derive(Clone, Debug)]
struct Request {
    user: u64,
    workflow: &'static str,
    attempts: u32,
    published: Instant,
}

struct Model {
    gate: Gate,
    slots: usize,
    budget: Duration,
    queue: Mutex<VecDeque<Request>>,
    arrived: Notify,
    in_flight: AtomicUsize,
    fate: Box<dyn Fn(&Request) -> Fate + Send + Sync>,
    /// Requests that were served, and how long they waited; and requests that ended without.
    served: Mutex<Vec<(Request, Duration)>>,
    exhausted: AtomicUsize,
    /// When session calls began.
    calls: Mutex<Vec<Instant>>,
}

const ATTEMPTS: u32 = 3;
const TOKEN: Duration = Duration::from_millis(3);

impl Model {
    fn start(
        slots: u16,
        budget: Duration,
        fate: impl Fn(&Request) -> Fate + Send + Sync + 'static,
    ) -> Arc<Self> {
        let model = Arc::new(Self {
            gate: Gate::new(None, slots, Metrics::new()),
            slots: slots.into(),
            budget,
            queue: Mutex::default(),
            arrived: Notify::new(),
            in_flight: AtomicUsize::new(0),
            fate: Box::new(fate),
            served: Mutex::default(),
            exhausted: AtomicUsize::new(0),
            calls: Mutex::default(),
        });
        for _ in 0..slots {
            tokio::spawn(Arc::clone(&model).fill_slot());
        }
        tokio::spawn(Arc::clone(&model).probe_when_idle());
        model
    }

    fn publish(&self, user: u64, workflow: &'static str) {
        self.push(Request { user, workflow, attempts: 1, published: Instant::now() });
    }

    fn push(&self, request: Request) {
        self.queue.lock().push_back(request);
        self.arrived.notify_one();
    }

    async fn fill_slot(self: Arc<Self>) {
        loop {
            let Some(request) = self.pop() else {
                self.arrived.notified().await;
                continue;
            };
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            self.serve(request).await;
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn pop(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        let request = queue.pop_front();
        if !queue.is_empty() {
            self.arrived.notify_one();
        }
        request
    }

    async fn serve(self: &Arc<Self>, mut request: Request) {
        let mut ticket = self.gate.ticket(&request.user.to_string(), request.workflow);
        let started = Instant::now();
        let mut ends = started + self.budget;
        let mut last_call = Duration::ZERO;
        for call in [Token].into_iter().chain(std::iter::repeat(Session)) {
            let place = ticket.place();
            let arrived = Instant::now();
            let is_full = || self.in_flight.load(Ordering::Relaxed) >= self.slots;
            if !last_call.is_zero() && place.makes_room_before_next_call(is_full(), self.budget) {
                sleep(Duration::from_millis(4)).await;
                return self.push(request);
            }
            let min_stay = Duration::from_secs(u64::from(last_call.is_zero()));
            let permit = tokio::select! {
                biased;
                permit = ticket.acquire(call) => permit,
                _ = place.until_room_is_needed(is_full, min_stay, self.budget + last_call) => {
                    // RabbitMQ confirms the copy.
                    sleep(Duration::from_millis(4)).await;
                    return self.push(request);
                }
            };
            ends += arrived.elapsed();
            if call == Token {
                sleep(TOKEN).await;
                permit.report(Ok(())).unwrap();
                continue;
            }
            let began = Instant::now();
            self.calls.lock().push(began);
            let Fate::Fails(took) = (self.fate)(&request) else {
                sleep(Duration::from_millis(20)).await;
                permit.report(Ok(())).unwrap();
                let waited = request.published.elapsed();
                return self.served.lock().push((request, waited));
            };
            sleep(took).await;
            last_call = took;
            let cause = if took < Duration::from_secs(1) {
                TransientCause::BrokenAnswer("nothing")
            } else {
                TransientCause::Timeout { sent: true }
            };
            let failed = permit.report::<()>(Err(CallError::Transient { call, cause }));
            let scope = failed.unwrap_err().scope;
            let delay = Duration::from_millis(300);
            if scope == FailureScope::Pause {
                ends += began.elapsed();
            } else if Instant::now() + delay < ends {
                sleep(delay).await;
            } else {
                let wait = self.gate.outage_wait(Session, began);
                let is_outage = scope == FailureScope::Undecided
                    && timeout(wait, self.gate.until_paused()).await.is_ok();
                if !is_outage {
                    break;
                }
            }
        }
        request.attempts += 1;
        if request.attempts > ATTEMPTS {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let model = Arc::clone(self);
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            model.push(request);
        });
    }

    async fn probe_when_idle(self: Arc<Self>) {
        loop {
            let mut ticket = self.gate.idle_ticket().await;
            if let Some(permit) = ticket.acquire_idle_probe().await {
                sleep(TOKEN).await;
                permit.report(Ok(())).unwrap();
            }
        }
    }
}

/// Failing requests, and good ones that follow, one a second, from a cold start.
async fn serve_good_among_failing(slots: u16, failing: u64, budget: Duration, took: Duration) {
    let model = Model::start(slots, budget, move |request| {
        if request.workflow == "bad" { Fate::Fails(took) } else { Fate::Served }
    });
    for user in 0..failing {
        model.publish(user, "bad");
    }
    let good = 10;
    for user in 0..good {
        sleep(Duration::from_secs(1)).await;
        model.publish(1_000 + user, "good");
    }
    let case = format!("{slots} slots, {failing} failing, {budget:?}, {took:?}");
    let bound = (budget + took).mul_f64(failing as f64 / f64::from(slots) + 1.0);
    // A probe every 200 ms, and a look every second whether room is needed.
    let bound = bound + Duration::from_secs(3);
    sleep(bound).await;
    let served = model.served.lock().clone();
    assert_eq!(served.len(), usize::try_from(good).unwrap(), "{case}");
    let longest = served.iter().map(|(_, waited)| *waited).max().unwrap();
    assert!(longest <= bound, "{case}: {longest:?} > {bound:?}");
    // From then on, each failing request spends its attempts.
    let turns = (budget + took).mul_f64(failing as f64 / f64::from(slots)) * ATTEMPTS;
    for user in 0..30 + 2 * turns.as_secs() {
        sleep(Duration::from_secs(1)).await;
        model.publish(2_000 + user, "good");
        if model.exhausted.load(Ordering::Relaxed) == usize::try_from(failing).unwrap() {
            return;
        }
    }
    panic!("{case}: {} of {failing} ended", model.exhausted.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn good_requests_wait_no_longer_than_the_bound() {
    for slots in [1, 2, 3, 8, 64] {
        for failing in [0, 1, 5, 20, 60] {
            for took in [Duration::from_millis(5), Duration::from_millis(1_500)] {
                // The bound of one slot and sixty failing requests is minutes.
                if failing <= 20 * u64::from(slots) {
                    serve_good_among_failing(slots, failing, Duration::from_secs(2), took).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_whose_probes_take_as_long_as_all_slots_make_room() {
    for (slots, took) in [(1, 3), (1, 10), (2, 6), (2, 10), (3, 10), (8, 30)] {
        let took = Duration::from_secs(took);
        serve_good_among_failing(slots, 4 * u64::from(slots), Duration::from_secs(2), took).await;
    }
}

/// Session calls fail for a while, with few or many slots and requests of one or of several workflows.
async fn sit_out_an_outage(slots: u16, requests: u64, workflows: usize, took: Duration) {
    let recovery = Instant::now() + Duration::from_secs(60);
    let model = Model::start(slots, Duration::from_secs(2), move |_| {
        if Instant::now() < recovery { Fate::Fails(took) } else { Fate::Served }
    });
    for user in 0..requests {
        let workflow = ["a", "b", "c"][usize::try_from(user).unwrap() % workflows];
        model.publish(user, workflow);
    }
    sleep(Duration::from_secs(75)).await;
    let case = format!("{slots} slots, {requests} requests, {workflows} workflows, {took:?}");
    assert_eq!(model.exhausted.load(Ordering::Relaxed), 0, "{case}");
    let served = model.served.lock().clone();
    assert_eq!(served.len(), usize::try_from(requests).unwrap(), "{case}");
    assert!(served.iter().all(|(request, _)| request.attempts == 1), "{case}");
    let calls: Vec<_> = model.calls.lock().iter().map(|at| recovery - *at).collect();
    let gaps = calls.windows(2).map(|pair| pair[0] - pair[1]);
    let longest = gaps.max().unwrap();
    assert!(longest <= Duration::from_millis(3_500), "{case}: no probe for {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn outage_of_sessions_spends_no_attempt_and_is_probed_throughout() {
    for slots in [1, 2, 3, 8, 64] {
        for requests in [3, 5, 20, 100] {
            for workflows in 1..=3 {
                for took in [Duration::from_millis(5), Duration::from_secs(2)] {
                    // Each request times out once, and one or two of them are no outage.
                    if slots < 3 && took >= Duration::from_secs(2) {
                        continue;
                    }
                    sit_out_an_outage(slots, requests, workflows, took).await;
                }
            }
        }
    }
}
