//! A model of Redis: what the scripts do, by Tokio's clock.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    cache::BucketShape,
    config::RateLimit,
    platform::{BucketGrant, BucketRequest, ProbeReply, ProbeRequest, Turn},
    rate_model::RateModel,
};

const LATENCY: Duration = Duration::from_millis(1);
/// As `cache::lease` extends it.
pub(super) const LEASE: Duration = Duration::from_secs(6);
/// As in `cache::probes`.
const PERMIT_INTERVAL: Duration = Duration::from_millis(260);
const ANSWER_KEPT: Duration = Duration::from_secs(10);
const ADDED: u32 = 2;
const MAX_LEFT: u32 = 64;
const MAX_AHEAD: u32 = 4;
/// What Redis' clock shows at the start.
const EPOCH_MICROS: i64 = 1_700_000_000_000_000;

pub(super) struct Redis {
    started: Instant,
    /// Since when it is unavailable.
    down_since: watch::Sender<Option<Instant>>,
    data: Mutex<Data>,
    /// Scripts run for permits to probe, for the rate limit, and for links.
    pub(super) probe_scripts: AtomicU64,
    pub(super) rate_scripts: AtomicU64,
    pub(super) link_scripts: AtomicU64,
}

#[derive(Default)]
struct Data {
    links: HashMap<u64, u64>,
    leases: HashMap<u64, (u64, Instant)>,
    permit_until: Option<Instant>,
    answer: Option<(Instant, u32)>,
    bucket: Option<RateModel>,
}

pub(super) enum Claim {
    Link(u64),
    Lease,
    LeaseTaken,
}

impl Redis {
    pub(super) fn new(limit: Option<RateLimit>) -> Self {
        let bucket = limit.map(|limit| {
            let shape = BucketShape::of(limit);
            RateModel::new(
                shape.refill_micros as i64,
                shape.capacity.into(),
                shape.turn_calls.into(),
                shape.kept_micros as i64,
            )
        });
        Self {
            started: Instant::now(),
            down_since: watch::Sender::new(None),
            data: Mutex::new(Data { bucket, ..Data::default() }),
            probe_scripts: AtomicU64::new(0),
            rate_scripts: AtomicU64::new(0),
            link_scripts: AtomicU64::new(0),
        }
    }

    pub(super) fn set_up(&self, is_up: bool) {
        self.down_since.send_replace((!is_up).then(Instant::now));
    }

    pub(super) fn unavailable_since(&self) -> Option<Instant> {
        *self.down_since.borrow()
    }

    pub(super) async fn until_available(&self) {
        let _ = self.down_since.subscribe().wait_for(Option::is_none).await;
    }

    /// Runs a script. `None` while Redis is unavailable.
    async fn run<T>(
        &self,
        scripts: &AtomicU64,
        script: impl FnOnce(&mut Data, Instant) -> T,
    ) -> Option<T> {
        sleep(LATENCY).await;
        if self.unavailable_since().is_some() {
            return None;
        }
        scripts.fetch_add(1, Ordering::Relaxed);
        let answer = script(&mut self.data.lock(), Instant::now());
        sleep(LATENCY).await;
        Some(answer)
    }

    pub(super) async fn claim(&self, user: u64, holder: u64) -> Option<Claim> {
        self.run(&self.link_scripts, |data, now| {
            if let Some(session) = data.links.get(&user) {
                return Claim::Link(*session);
            }
            let lease =
                data.leases.get(&user).filter(|(other, until)| *other != holder && *until > now);
            if lease.is_some() {
                return Claim::LeaseTaken;
            }
            data.leases.insert(user, (holder, now + LEASE));
            Claim::Lease
        })
        .await
    }

    /// Extends a lease. Returns whether the holder has it; `None` while Redis is unavailable.
    pub(super) async fn extend(&self, user: u64, holder: u64) -> Option<bool> {
        self.run(&self.link_scripts, |data, now| match data.leases.get_mut(&user) {
            Some((owner, until)) if *owner == holder => {
                *until = now + LEASE;
                true
            }
            _ => false,
        })
        .await
    }

    pub(super) async fn release(&self, user: u64, holder: u64) {
        self.run(&self.link_scripts, |data, _| {
            if data.leases.get(&user).is_some_and(|(owner, _)| *owner == holder) {
                data.leases.remove(&user);
            }
        })
        .await;
    }

    /// Stores a link if there is none. `None` while Redis is unavailable.
    pub(super) async fn store(&self, user: u64, session: u64) -> Option<()> {
        self.run(&self.link_scripts, |data, _| {
            data.links.entry(user).or_insert(session);
            data.leases.remove(&user);
        })
        .await
    }

    /// `take_calls.lua`.
    pub(super) async fn take_calls(&self, request: BucketRequest) -> Option<BucketGrant> {
        self.run(&self.rate_scripts, |data, now| {
            let (wanted, turn) = match request {
                BucketRequest::Take { calls, turn } => {
                    let turn = turn.map_or((0, 0), |turn| (turn.at as i64, turn.calls.into()));
                    (i64::from(calls), turn)
                }
                BucketRequest::PutBack(calls) => (-i64::from(calls), (0, 0)),
            };
            let now = self.micros(now);
            let reply = data.bucket.as_mut().unwrap().take(now, wanted, turn);
            let (at, calls) = reply.turn;
            BucketGrant {
                calls: u32::try_from(reply.granted).unwrap_or(0),
                wait: Duration::from_micros(reply.wait_micros.unsigned_abs()),
                turn: (calls > 0).then_some(Turn { at: at as u64, calls: calls as u32 }),
            }
        })
        .await
    }

    /// The script of release 0.1.
    pub(super) async fn take_calls_as_0_1(&self, wanted: u32) -> Option<(u32, Duration)> {
        self.run(&self.rate_scripts, |data, now| {
            let now = self.micros(now);
            let (granted, wait) = data.bucket.as_mut().unwrap().take_as_0_1(now, wanted.into());
            (granted as u32, Duration::from_micros(wait.unsigned_abs()))
        })
        .await
    }

    /// Redis' clock.
    fn micros(&self, now: Instant) -> i64 {
        EPOCH_MICROS + i64::try_from((now - self.started).as_micros()).unwrap()
    }

    /// `take_probe.lua` and `platform_answered.lua`.
    pub(super) async fn probes(&self, request: ProbeRequest) -> Option<ProbeReply> {
        self.run(&self.probe_scripts, |data, now| {
            let mut reply = ProbeReply::default();
            if let ProbeRequest::Answered { calls } = request {
                let added = data.answer.map_or(0, |(_, added)| added);
                data.answer = Some((now, (added + ADDED * calls).min(MAX_LEFT)));
            }
            data.answer = data.answer.filter(|(at, _)| now - *at < ANSWER_KEPT);
            reply.answered_ago = data.answer.map(|(at, _)| now - at);
            match (request, &mut data.answer) {
                (ProbeRequest::Look | ProbeRequest::Answered { .. }, _) => {}
                (ProbeRequest::Permit(kind), Some((_, added @ 1..))) if kind.is_half_open => {
                    *added -= 1;
                    reply.is_granted = true;
                }
                (ProbeRequest::Permit(kind), _) => {
                    let ahead = if kind.is_second_call { MAX_AHEAD } else { 0 };
                    let until = data.permit_until.unwrap_or(now).max(now);
                    reply.wait = until - now;
                    reply.is_granted = reply.wait <= ahead * PERMIT_INTERVAL;
                    if reply.is_granted {
                        data.permit_until = Some(until + PERMIT_INTERVAL);
                    }
                }
            }
            reply
        })
        .await
    }
}
