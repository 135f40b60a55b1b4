//! The permits to probe that all replicas share, as one open circuit breaker sees them.
//!
//! Without them each replica would probe by itself: a thousand, 400 times a second. The rules here neither
//! wait nor read a clock. Nothing can stay shut: without an answer to its request for a permit, for whatever
//! reason, a replica probes by itself.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::decision::Decision;
use crate::session::Call;

/// A permit is used within this time after it was requested, or not at all. Six calls whose permits are 260 ms
/// apart thus never fall into one second.
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
    /// A permit for one call to a platform that is down.
    Permit(PermitKind),
    /// Nothing: the platform has answered this replica well, whose probe was this many calls.
    Answered { calls: u32 },
}

/// What a permit is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PermitKind {
    /// It may be one of those that each good answer adds.
    pub(crate) is_half_open: bool,
    /// For the second call of a probe. Goes before those that begin one: it may be granted ahead.
    pub(crate) is_second_call: bool,
}

/// What the replicas share, as a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbeReply {
    pub(crate) is_granted: bool,
    /// Time until this permit may be used, or, if it was denied, until the next one.
    pub(crate) wait: Duration,
    /// How long ago a replica was last answered well after a pause.
    pub(crate) answered_ago: Option<Duration>,
}

/// A request, and its reply.
#[derive(Clone, Copy)]
pub(super) struct Exchange {
    pub(super) request: ProbeRequest,
    /// `None`: the replicas share nothing at the moment.
    pub(super) reply: Option<ProbeReply>,
    pub(super) requested: Instant,
    pub(super) replied: Instant,
    /// At random, from 0 to 1.
    pub(super) jitter: f64,
}

/// A good answer after a pause, which the other replicas do not know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnreportedAnswer {
    pub(super) at: Instant,
    pub(super) report_at: Instant,
    /// How many calls a probe of the others takes.
    pub(super) calls: u32,
}

impl UnreportedAnswer {
    /// `call`: the one that was answered well.
    pub(super) fn new(call: Call, now: Instant) -> Self {
        // A probe that ends with a session mostly began with a token.
        let calls = if call == Call::Session { 2 } else { 1 };
        Self { at: now, report_at: now, calls }
    }
}

pub(super) struct ProbePermits {
    /// Since when a caller waits for the answer to its wish for a permit.
    wanted: Option<Instant>,
    /// One of these callers may succeed although others fail.
    is_urgent: bool,
    /// One of these callers has made the first call of its probe.
    is_second_call: bool,
    granted: Option<Granted>,
    /// Denials in a row, and when and how late within the spread to ask again after the last one.
    denials: u32,
    next_permit: Instant,
    jitter: f64,
    /// The last of these requests was for a second call. Such a permit is granted ahead, unless many are.
    was_second_denied: bool,
    last_reply: Instant,
    /// Only later good answers of other replicas are news.
    answers_after: Instant,
}

#[derive(Clone, Copy)]
struct Granted {
    at: Instant,
    until: Instant,
    is_second_call: bool,
}

impl ProbePermits {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: None,
            is_urgent: false,
            is_second_call: false,
            granted: None,
            denials: 0,
            next_permit: now,
            jitter: 0.0,
            was_second_denied: false,
            last_reply: now,
            answers_after: now,
        }
    }

    /// Decides whether a caller whose call is due may start it. `is_second_call`: of a probe that has begun.
    /// `yields`: others go first, if they wait.
    pub(super) fn decide(&self, is_second_call: bool, yields: bool, now: Instant) -> Decision {
        match self.granted.filter(|granted| now < granted.until) {
            Some(granted) => {
                let yields = yields || granted.is_second_call && !is_second_call;
                let from = if yields { granted.at + YIELD } else { granted.at };
                if now < from { Decision::WaitUntil(from) } else { Decision::Probe }
            }
            None => {
                let alone = self.wanted.unwrap_or(now) + ALONE_AFTER;
                if alone <= now { Decision::Probe } else { Decision::AwaitPermit { until: alone } }
            }
        }
    }

    /// Records that a call of a probe is due.
    pub(super) fn want(&mut self, is_second_call: bool, is_urgent: bool, now: Instant) {
        self.wanted.get_or_insert(now);
        self.is_second_call |= is_second_call;
        self.is_urgent |= is_urgent;
    }

    /// Forgets which calls are due: callers say so again.
    pub(super) fn forget_wishes(&mut self) {
        self.wanted = None;
        self.is_urgent = false;
        self.is_second_call = false;
    }

    /// Uses the permit.
    pub(super) fn take(&mut self) {
        self.granted = None;
        self.forget_wishes();
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
            let at = match (self.is_second_call, self.was_second_denied) {
                (true, false) => self.last_reply,
                (true, true) => self.last_reply + SPREAD.mul_f64(1.0 + self.jitter),
                (false, _) => self.next_permit + spread.mul_f64(self.jitter),
            };
            let kind = PermitKind { is_half_open, is_second_call: self.is_second_call };
            return Some((at, ProbeRequest::Permit(kind)));
        }
        (!is_half_open).then_some((self.last_reply + LOOK, ProbeRequest::Look))
    }

    /// Records a reply. Returns whether another replica was answered since the last one.
    pub(super) fn record(&mut self, exchange: Exchange) -> bool {
        let Exchange { request, reply, requested, replied, jitter } = exchange;
        self.last_reply = replied;
        if let ProbeRequest::Permit(kind) = request {
            // Callers whose probe is still due say so again.
            self.forget_wishes();
            let wait = reply.map_or(Duration::ZERO, |reply| reply.wait);
            let at = replied + wait;
            if reply.is_none_or(|reply| reply.is_granted) {
                let until = (requested + wait + VALID_SINCE_REQUEST).max(at + VALID_SINCE_GRANT);
                self.granted = Some(Granted { at, until, is_second_call: kind.is_second_call });
                self.denials = 0;
                self.was_second_denied = false;
            } else {
                self.denials = self.denials.saturating_add(1);
                self.was_second_denied = kind.is_second_call;
            }
            self.next_permit = at;
            self.jitter = jitter;
        }
        let answered_ago = reply.and_then(|reply| reply.answered_ago);
        let is_news = answered_ago
            .and_then(|ago| replied.checked_sub(ago))
            .is_some_and(|answered| answered > self.answers_after);
        if is_news {
            self.answers_after = replied;
            // What was denied before the platform was back says nothing about now.
            self.denials = 0;
        }
        is_news
    }
}
