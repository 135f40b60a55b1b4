//! What each session beyond a person's first is owed to.
//!
//! A worker makes a session where it knows of none. So a later session of the same user and workflow
//! is explained if each earlier one of theirs was lost on its way into Redis, or was gone from there,
//! or could not be asked for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    book::Session,
    fleet::{End, place_of},
    stage::{Broken, Span},
};

/// From the platform's answer to Redis' reply.
const WINDOW: Duration = Duration::from_millis(250);
/// The same on a machine that is busy with everything at once. Taken for a kill only where the worker
/// has not said that it was done with the request.
const BUSY: Duration = Duration::from_secs(2);

/// Cause an earlier session did not spare a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Redis has lost everything since.
    RedisForgot,
    /// One of the two workers said that it could not ask Redis, or not store what it had.
    RedisAway,
    /// Its worker was killed during the call, or right after.
    WorkerKilled,
    /// The platform made it, but answered something else, or nothing, or too late.
    AnswerLost,
    /// The network to the platform broke during the call.
    PlatformCut,
    /// Its worker shut down and its grace period ended during the call.
    GraceOver,
    /// One of the two workers was stalled at that time.
    WorkerStalled,
    /// One of the two workers lost the lease meanwhile.
    LeaseLost,
}

pub struct Verdict<'a> {
    /// Each with the one before it.
    pub extra: BTreeMap<Cause, Vec<(&'a Session, &'a Session)>>,
    /// All sessions of whoever has one too many.
    pub unexplained: Vec<Vec<&'a Session>>,
    /// The most sessions beyond one that a single kill has cost.
    pub most_by_one_kill: usize,
}

pub fn judge<'a>(sessions: &'a [Session], ends: &[End], spans: &[Span]) -> Verdict<'a> {
    let mut by_pair: HashMap<_, Vec<&Session>> = HashMap::new();
    for session in sessions {
        by_pair.entry(&session.pair).or_default().push(session);
    }
    let evidence = Evidence::new(ends, spans);
    let mut verdict =
        Verdict { extra: BTreeMap::new(), unexplained: Vec::new(), most_by_one_kill: 0 };
    let mut by_kill: HashMap<&str, usize> = HashMap::new();
    for sessions in by_pair.into_values() {
        let mut all_explained = true;
        for (number, later) in sessions.iter().enumerate().skip(1) {
            let whys: Option<Vec<Cause>> =
                sessions[..number].iter().map(|earlier| evidence.why(earlier, later)).collect();
            match whys {
                Some(whys) => {
                    let why = whys[number - 1];
                    let pair = (sessions[number - 1], *later);
                    verdict.extra.entry(why).or_default().push(pair);
                    if why == Cause::WorkerKilled {
                        *by_kill.entry(&sessions[number - 1].worker).or_default() += 1;
                    }
                }
                None => all_explained = false,
            }
        }
        if !all_explained {
            verdict.unexplained.push(sessions);
        }
    }
    verdict.most_by_one_kill = by_kill.into_values().max().unwrap_or_default();
    verdict
}

struct Evidence<'a> {
    ends: HashMap<&'a str, &'a End>,
    spans: &'a [Span],
    /// Which worker did without Redis, or lost a lease, for which request.
    without_redis: HashSet<(&'a str, String)>,
    lost_leases: HashSet<(&'a str, String)>,
    finished: HashSet<(&'a str, String)>,
}

impl<'a> Evidence<'a> {
    fn new(ends: &'a [End], spans: &'a [Span]) -> Self {
        let said = |message| {
            let lines = ends.iter().flat_map(move |end| {
                let lines = end.lines(message).into_iter();
                lines.map(|line| (&*end.worker, line["request_id"].as_str().unwrap().to_owned()))
            });
            lines.collect::<Vec<_>>()
        };
        let mut without_redis = said("Redis unavailable: serving the request without it");
        without_redis.extend(said("link not stored in Redis: publishing it anyway"));
        Self {
            ends: ends.iter().map(|end| (&*end.worker, end)).collect(),
            spans,
            without_redis: without_redis.into_iter().collect(),
            lost_leases: said("the lease was lost; the successor's link counts")
                .into_iter()
                .collect(),
            finished: said("request finished").into_iter().collect(),
        }
    }

    fn why(&self, earlier: &'a Session, later: &'a Session) -> Option<Cause> {
        let over = earlier.over.unwrap_or(earlier.made);
        // From the claim to Redis' reply.
        let of_earlier = (earlier.begun - WINDOW, over + WINDOW);
        let of_later = (later.begun - WINDOW, later.over.unwrap_or(later.made) + WINDOW);
        let during = |end: &End| (earlier.begun..=over + BUSY).contains(&end.at);
        let end = self.ends.get(&*earlier.worker).filter(|end| during(end));
        let said = |set: &HashSet<(&'a str, String)>, session: &'a Session| {
            set.contains(&(&*session.worker, session.request_id.clone()))
        };
        let stalled =
            |session: &Session, span| self.broke(Broken::WorkerStalled, &session.worker, span);

        let whys = [
            (
                Cause::RedisForgot,
                self.broke(Broken::RedisForgot, &earlier.worker, (earlier.made, later.made)),
            ),
            (
                Cause::RedisAway,
                said(&self.without_redis, earlier) || said(&self.without_redis, later),
            ),
            (
                Cause::WorkerKilled,
                end.is_some_and(|end| end.killed) && !said(&self.finished, earlier),
            ),
            (Cause::AnswerLost, earlier.trouble.is_some()),
            (Cause::PlatformCut, self.broke(Broken::PlatformAway, &earlier.worker, of_earlier)),
            (
                Cause::GraceOver,
                end.is_some_and(|end| {
                    !end.lines("grace period over: requeueing the requests in flight").is_empty()
                }),
            ),
            (Cause::WorkerStalled, stalled(earlier, of_earlier) || stalled(later, of_later)),
            (Cause::LeaseLost, said(&self.lost_leases, earlier) || said(&self.lost_leases, later)),
        ];
        whys.into_iter().find_map(|(why, is_so)| is_so.then_some(why))
    }

    /// Whether something was broken for a worker at some time in a span.
    fn broke(&self, broken: Broken, worker: &str, (from, until): (Instant, Instant)) -> bool {
        self.spans.iter().any(|span| {
            span.broken == broken
                && span.whose.includes(place_of(worker))
                && span.from <= until
                && span.until >= from
        })
    }
}
