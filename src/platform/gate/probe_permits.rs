//! The permits to probe that all replicas share, as one open circuit breaker sees them.
//!
//! Without them each replica would probe by itself: a thousand, 400 times a second. The rules here neither
//! wait nor read a clock. Nothing can stay shut: without an answer to its request for a permit, for whatever
//! reason, a replica probes by itself.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::decision::Decision;

/// A permit is used within this time after it was requested, or not at all. Six that are granted 260 ms apart
/// thus never fall into one second.
const VALID_SINCE_REQUEST: Duration = Duration::from_millis(250);
/// But a late answer can still be used for this long.
const VALID_SINCE_GRANT: Duration = Duration::from_millis(50);
/// How long a permit is left to others that wait.
const YIELD: Duration = Duration::from_millis(20);

/// Without a wish for a permit, how often to look whether another replica was answered.
const LOOK: Duration = Duration::from_millis(2_500);
/// Longest wait for an answer to the wish for a permit; then the replica probes by itself.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// After the second denial in a row, requests are spread over this time, which doubles up to a limit.
const SPREAD: Duration = Duration::from_millis(100);
/// The limits: with 260 ms of Redis' own, a replica asks at least every 2.5 s.
const MAX_SPREAD: Duration = Duration::from_millis(2_200);
const MAX_SPREAD_HALF_OPEN: Duration = Duration::from_millis(750);
/// Of callers that may succeed although others fail.
const MAX_SPREAD_URGENT: Duration = Duration::from_millis(500);

/// Asks what the replicas share. Returns `None` while that cannot be reached.
pub(crate) type SharedProbes =
    Box<dyn Fn(ProbeRequest) -> BoxFuture<'static, Option<ProbeReply>> + Send + Sync>;

/// What a replica asks for. Each reply also says when a replica was last answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeRequest {
    /// Nothing else.
    Look,
    /// A permit for one probe of a platform that is down.
    Permit,
    /// The same, of a half-open breaker: it may be one of those that each good answer adds.
    HalfOpenPermit,
    /// Nothing: the platform has answered this replica well.
    Answered,
}

impl ProbeRequest {
    pub(super) fn is_for_permit(self) -> bool {
        matches!(self, Self::Permit | Self::HalfOpenPermit)
    }
}

/// What the replicas share, as a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProbeReply {
    pub(crate) is_granted: bool,
    /// Time until the next permit, if this one was denied.
    pub(crate) wait: Duration,
    /// How long ago a replica was last answered well after a pause.
    pub(crate) answered_ago: Option<Duration>,
}

/// A good answer after a pause, which the other replicas do not know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnreportedAnswer {
    pub(super) at: Instant,
    pub(super) report_at: Instant,
}

impl UnreportedAnswer {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now, report_at: now }
    }
}

pub(super) struct ProbePermits {
    /// Since when a caller waits for the answer to its wish for a permit.
    wanted: Option<Instant>,
    /// One of these callers may succeed although others fail.
    is_urgent: bool,
    granted: Option<Granted>,
    /// Denials in a row, and when and how late within the spread to ask again after the last one.
    denials: u32,
    next_permit: Instant,
    jitter: f64,
    last_reply: Instant,
    /// Only later good answers of other replicas are news.
    answers_after: Instant,
}

#[derive(Clone, Copy)]
struct Granted {
    at: Instant,
    until: Instant,
}

impl ProbePermits {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: None,
            is_urgent: false,
            granted: None,
            denials: 0,
            next_permit: now,
            jitter: 0.0,
            last_reply: now,
            answers_after: now,
        }
    }

    /// Decides whether a caller whose probe is due may start it. `yields`: others go
    /// first, if they wait.
    pub(super) fn decide(&self, yields: bool, now: Instant) -> Decision {
        match self.granted.filter(|granted| now < granted.until) {
            Some(granted) if yields && now < granted.at + YIELD => {
                Decision::WaitUntil(granted.at + YIELD)
            }
            Some(_) => Decision::Probe,
            None => {
                let alone = self.wanted.unwrap_or(now) + ALONE_AFTER;
                if alone <= now { Decision::Probe } else { Decision::AwaitPermit { until: alone } }
            }
        }
    }

    /// Records that the probe of a caller is due.
    pub(super) fn want(&mut self, is_urgent: bool, now: Instant) {
        self.wanted.get_or_insert(now);
        self.is_urgent |= is_urgent;
    }

    /// Uses the permit.
    pub(super) fn take(&mut self) {
        self.granted = None;
        self.wanted = None;
    }

    /// The next request, and when to send it.
    pub(super) fn next_request(&self, is_half_open: bool) -> Option<(Instant, ProbeRequest)> {
        if self.wanted.is_some() {
            let limit = match (self.is_urgent, is_half_open) {
                (true, _) => MAX_SPREAD_URGENT,
                (false, true) => MAX_SPREAD_HALF_OPEN,
                (false, false) => MAX_SPREAD,
            };
            let spread = match self.denials {
                0 | 1 => Duration::ZERO,
                denials => SPREAD.saturating_mul(1 << (denials - 2).min(8)).min(limit),
            };
            let at = self.next_permit + spread.mul_f64(self.jitter);
            let request =
                if is_half_open { ProbeRequest::HalfOpenPermit } else { ProbeRequest::Permit };
            return Some((at, request));
        }
        (!is_half_open).then_some((self.last_reply + LOOK, ProbeRequest::Look))
    }

    /// Records a reply; `None`: the replicas share nothing at the moment. `jitter`: from 0 to 1. Returns whether
    /// another replica was answered since the last reply.
    pub(super) fn record(
        &mut self,
        request: ProbeRequest,
        reply: Option<ProbeReply>,
        requested: Instant,
        jitter: f64,
        now: Instant,
    ) -> bool {
        self.last_reply = now;
        if request.is_for_permit() {
            // Callers whose probe is still due say so again.
            self.wanted = None;
            self.is_urgent = false;
            if reply.is_none_or(|reply| reply.is_granted) {
                let until = (requested + VALID_SINCE_REQUEST).max(now + VALID_SINCE_GRANT);
                self.granted = Some(Granted { at: now, until });
                self.denials = 0;
            } else {
                self.denials = self.denials.saturating_add(1);
            }
            self.next_permit = now + reply.map_or(Duration::ZERO, |reply| reply.wait);
            self.jitter = jitter;
        }
        let answered_ago = reply.and_then(|reply| reply.answered_ago);
        let is_news = answered_ago
            .and_then(|ago| now.checked_sub(ago))
            .is_some_and(|answered| answered > self.answers_after);
        if is_news {
            self.answers_after = now;
            // What was denied before the platform was back says nothing about now.
            self.denials = 0;
        }
        is_news
    }
}
