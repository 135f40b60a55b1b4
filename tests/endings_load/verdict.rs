//! What was promised, and what was measured.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use time::OffsetDateTime;

use crate::{
    load::{Ending, Load, Served},
    workers::Finished,
};

/// The limit of the 99th percentile.
const LIMIT: Duration = Duration::from_secs(1);
/// `expiresAt` is rounded to milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

pub struct Verdict {
    requests: usize,
    repeated_events: usize,
    sessions: usize,
    outcomes: BTreeMap<String, usize>,
    /// From the publish of each request to its event, sorted.
    waits: Vec<Duration>,
    /// From RabbitMQ's confirm of each ending to its ack, sorted.
    times: Vec<Duration>,
    /// Events with an ended session, for requests that were published after the ending was acked.
    broken: Vec<String>,
    /// Sessions that replaced another that no ending concerned.
    lost: Vec<String>,
}

impl Verdict {
    pub fn new(load: &Load, finished: &HashMap<String, Finished>) -> Self {
        let served = load.served.lock().unwrap();
        let endings = load.endings.lock().unwrap();
        let mut outcomes = BTreeMap::new();
        for ending in finished.values() {
            *outcomes.entry(ending.outcome.clone()).or_default() += 1;
        }
        let mut times: Vec<_> = endings
            .iter()
            .map(|ending| finished[&ending.id].at - ending.confirmed_at)
            // An ending may be acked before its publisher reads the confirm.
            .map(|time| Duration::try_from(time).unwrap_or_default())
            .collect();
        times.sort_unstable();
        let mut waits: Vec<_> = served
            .iter()
            .map(|served| Duration::try_from(served.received_at - served.published_at))
            .map(Result::unwrap_or_default)
            .collect();
        waits.sort_unstable();

        let mut sessions: BTreeMap<&str, BTreeMap<OffsetDateTime, &Served>> = BTreeMap::new();
        for served in served.iter() {
            sessions.entry(&served.user).or_default().entry(served.made_at).or_insert(served);
        }
        let mut of_user: HashMap<&str, Vec<&Ending>> = HashMap::new();
        let mut of_session: HashMap<&str, Vec<&Ending>> = HashMap::new();
        for ending in endings.iter() {
            match (&ending.user, &ending.session) {
                (_, Some(session)) => of_session.entry(session).or_default().push(ending),
                (Some(user), None) => of_user.entry(user).or_default().push(ending),
                (None, None) => {}
            }
        }
        let concern = |served: &Served| -> Vec<&Ending> {
            let second = served.made_at.unix_timestamp();
            let by_user = of_user.get(served.user.as_str()).into_iter().flatten();
            let by_user = by_user.filter(|ending| second <= ending.timestamp);
            by_user
                .chain(of_session.get(served.session.as_str()).into_iter().flatten())
                .copied()
                .collect()
        };

        let mut first_event: HashMap<&str, OffsetDateTime> = HashMap::new();
        for served in served.iter() {
            first_event.entry(&served.session).or_insert(served.received_at);
        }
        let mut broken = Vec::new();
        for event in served.iter() {
            // An ending by user does not affect a session that is being made.
            let known_at = first_event[event.session.as_str()];
            let has_ended = concern(event)
                .into_iter()
                .filter(|ending| ending.session.is_some() || known_at < ending.published_at);
            let acked = has_ended.min_by_key(|ending| finished[&ending.id].at);
            if let Some(ending) = acked
                && finished[&ending.id].at < event.published_at
            {
                broken.push(format!("{event:?}: {ending:?}, {:?}", finished[&ending.id]));
            }
        }
        let mut lost = Vec::new();
        for of_user in sessions.values() {
            let of_user: Vec<_> = of_user.values().collect();
            for pair in of_user.windows(2) {
                let is_over = concern(pair[0])
                    .into_iter()
                    .any(|ending| ending.published_at <= pair[1].made_at + ROUNDING);
                if !is_over {
                    lost.push(format!("{:?} replaced {:?}", pair[1], pair[0]));
                }
            }
        }
        let requests: HashSet<_> = served.iter().map(|served| &served.request).collect();
        Self {
            requests: requests.len(),
            repeated_events: served.len() - requests.len(),
            sessions: sessions.values().map(BTreeMap::len).sum(),
            outcomes,
            waits,
            times,
            broken,
            lost,
        }
    }

    pub fn is_good(&self) -> bool {
        self.broken.is_empty() && self.lost.is_empty() && percentile(&self.times, 99) <= LIMIT
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn write_times(f: &mut fmt::Formatter<'_>, sorted: &[Duration]) -> fmt::Result {
    for (name, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
        let ms = percentile(sorted, percent).as_secs_f64() * 1_000.0;
        writeln!(f, "{ms:>8.1} ms {name}")?;
    }
    Ok(())
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.broken.iter().chain(&self.lost).take(20) {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{:>8} requests served, published to event:", self.requests)?;
        write_times(f, &self.waits)?;
        writeln!(f, "{:>8} events repeated after the kill", self.repeated_events)?;
        writeln!(f, "{:>8} sessions handed out", self.sessions)?;
        writeln!(f, "{:>8} endings, confirmed to acked:", self.times.len())?;
        write_times(f, &self.times)?;
        for (outcome, count) in &self.outcomes {
            writeln!(f, "{count:>8} endings with the outcome {outcome}")?;
        }
        writeln!(f, "{:>8} events with a session that had ended", self.broken.len())?;
        write!(f, "{:>8} links lost that no ending concerned", self.lost.len())
    }
}
