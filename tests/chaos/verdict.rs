//! Explains each session beyond the first one of a user and workflow.
//!
//! A worker makes a session when it knows of none. So a later session of the same pair is explained
//! if each earlier one was lost before Redis stored it, was lost from Redis, or could not be read.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    environment::{Outage, OutageKind},
    ledger::Session,
    plan::RENEWAL,
    support::log_text,
    workers::{Exit, slot_of},
};

const LEASE_LOST: &str = "lease lost: using the new holder's link";
const GRACE_PERIOD_OVER: &str = "grace period over: requeueing the requests in flight";

/// How long a worker may take from the platform's answer to the reply of Redis.
const STORE_WINDOW: Duration = Duration::from_millis(250);
/// The same on a machine that runs everything at once. Allowed only for a worker that was killed
/// before it logged that the request was finished.
const BUSY_STORE_WINDOW: Duration = Duration::from_secs(2);

/// Why an earlier session did not prevent a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    RedisDataLost,
    /// One of the two workers logged that it served the request without Redis, or could not store
    /// the link.
    RedisUnavailable,
    /// The worker was killed during the call or right after it.
    WorkerKilled,
    /// The platform made the session, but its answer failed, was broken, or came too late.
    AnswerLost,
    /// The network to the platform failed during the call.
    PlatformUnreachable,
    /// The worker's grace period ended during the call.
    GracePeriodOver,
    /// One of the two workers was stalled during its call.
    WorkerStalled,
    /// One of the two workers lost the lease.
    LeaseLost,
    /// The later session was made for a renewal, and the earlier one for another request.
    Renewed,
}

pub struct Verdict<'a> {
    /// The extra sessions, each with the one before it, by cause.
    pub explained: BTreeMap<Cause, Vec<(&'a Session, &'a Session)>>,
    /// All sessions of each pair that has an unexplained one.
    pub unexplained: Vec<Vec<&'a Session>>,
    /// The most extra sessions that a single kill has cost.
    pub max_cost_of_kill: usize,
}

pub fn judge<'a>(sessions: &'a [Session], exits: &[Exit], outages: &[Outage]) -> Verdict<'a> {
    let mut by_pair: HashMap<_, Vec<&Session>> = HashMap::new();
    for session in sessions {
        by_pair.entry(&session.pair).or_default().push(session);
    }
    let evidence = Evidence::new(exits, outages);
    let mut verdict =
        Verdict { explained: BTreeMap::new(), unexplained: Vec::new(), max_cost_of_kill: 0 };
    let mut by_kill: HashMap<&str, usize> = HashMap::new();
    for sessions in by_pair.into_values() {
        let mut all_explained = true;
        for (number, later) in sessions.iter().enumerate().skip(1) {
            let causes: Option<Vec<Cause>> =
                sessions[..number].iter().map(|earlier| evidence.cause(earlier, later)).collect();
            let Some(causes) = causes else {
                all_explained = false;
                continue;
            };
            let previous = sessions[number - 1];
            let cause = causes[number - 1];
            verdict.explained.entry(cause).or_default().push((previous, *later));
            if cause == Cause::WorkerKilled {
                *by_kill.entry(&previous.worker).or_default() += 1;
            }
        }
        if !all_explained {
            verdict.unexplained.push(sessions);
        }
    }
    verdict.max_cost_of_kill = by_kill.into_values().max().unwrap_or_default();
    verdict
}

/// A worker and a request that it logged something about.
type LogEntry<'a> = (&'a str, String);

struct Evidence<'a> {
    exits: HashMap<&'a str, &'a Exit>,
    outages: &'a [Outage],
    without_redis: HashSet<LogEntry<'a>>,
    lost_leases: HashSet<LogEntry<'a>>,
    finished: HashSet<LogEntry<'a>>,
}

impl<'a> Evidence<'a> {
    fn new(exits: &'a [Exit], outages: &'a [Outage]) -> Self {
        let logged = |message| {
            exits.iter().flat_map(move |exit| {
                let lines = exit.log_lines(message).into_iter();
                lines.map(|line| (&*exit.worker, line["request_id"].as_str().unwrap().to_owned()))
            })
        };
        Self {
            exits: exits.iter().map(|exit| (&*exit.worker, exit)).collect(),
            outages,
            without_redis: logged(log_text::REQUEST_WITHOUT_CACHE)
                .chain(logged(log_text::LINK_NOT_STORED))
                .collect(),
            lost_leases: logged(LEASE_LOST).collect(),
            finished: logged(log_text::REQUEST_FINISHED).collect(),
        }
    }

    fn cause(&self, earlier: &'a Session, later: &'a Session) -> Option<Cause> {
        let ended = earlier.ended.unwrap_or(earlier.made);
        let exited = self
            .exits
            .get(&*earlier.worker)
            .filter(|exit| (earlier.started..=ended + BUSY_STORE_WINDOW).contains(&exit.at));
        let logged = |entries: &HashSet<LogEntry<'a>>, session: &'a Session| {
            entries.contains(&(&*session.worker, session.request_id.clone()))
        };
        let either_logged = |entries| logged(entries, earlier) || logged(entries, later);
        let stalled =
            |session| self.outage(OutageKind::WorkerStalled, session, call_window(session));

        let causes = [
            (
                Cause::RedisDataLost,
                self.outage(OutageKind::RedisDataLost, earlier, (earlier.made, later.made)),
            ),
            (Cause::RedisUnavailable, either_logged(&self.without_redis)),
            (
                Cause::WorkerKilled,
                exited.is_some_and(|exit| exit.killed) && !logged(&self.finished, earlier),
            ),
            (Cause::AnswerLost, earlier.fault.is_some()),
            (
                Cause::PlatformUnreachable,
                self.outage(OutageKind::PlatformUnreachable, earlier, call_window(earlier)),
            ),
            (
                Cause::GracePeriodOver,
                exited.is_some_and(|exit| !exit.log_lines(GRACE_PERIOD_OVER).is_empty()),
            ),
            (Cause::WorkerStalled, stalled(earlier) || stalled(later)),
            (Cause::LeaseLost, either_logged(&self.lost_leases)),
            (
                Cause::Renewed,
                later.request_id.starts_with(RENEWAL) && earlier.request_id != later.request_id,
            ),
        ];
        causes.into_iter().find_map(|(cause, applies)| applies.then_some(cause))
    }

    /// Whether an outage of this kind affected the session's worker between two moments.
    fn outage(
        &self,
        kind: OutageKind,
        session: &Session,
        (from, until): (Instant, Instant),
    ) -> bool {
        self.outages.iter().any(|outage| {
            outage.kind == kind
                && outage.scope.includes(slot_of(&session.worker))
                && outage.from <= until
                && outage.until >= from
        })
    }
}

/// The time from the claim to the reply of Redis.
fn call_window(session: &Session) -> (Instant, Instant) {
    let ended = session.ended.unwrap_or(session.made);
    (session.started - STORE_WINDOW, ended + STORE_WINDOW)
}
