//! The table at the end of a campaign.

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Write},
    time::Duration,
};

use crate::{
    clients::{Clients, ReceivedEvent, Request},
    environment::Environment,
    ledger::Session,
    verdict::{Cause, Verdict, judge},
    workers::{Exit, QUEUE},
};

pub struct Report {
    rows: Vec<(String, String)>,
    /// One paragraph for each failure of the campaign.
    failures: String,
    /// Explains each extra session and the longest wait.
    pub notes: String,
}

impl Report {
    pub async fn new(
        environment: &Environment,
        clients: &Clients,
        exits: &[Exit],
        fault_counts: &[(&str, usize)],
    ) -> Self {
        let mut report = Self { rows: Vec::new(), failures: String::new(), notes: String::new() };
        let dead_letters = clients.queue_depth(&format!("{QUEUE}.dead")).await;
        let queued = clients.queue_depth(QUEUE).await;
        let requests = clients.requests.lock().unwrap();
        let sessions = environment.platform.sessions();
        report.add_requests(&requests, exits);
        report.row("**dead letters**", dead_letters);
        if dead_letters > 0 {
            report.failure(&format!("no fault explains {dead_letters} dead letters"));
        }
        report.row("requests still in the queue", queued);
        let outages = environment.outages();
        report.add_sessions(&sessions, &judge(&sessions, exits, &outages), environment, exits);
        report.add_events(&requests, &sessions);
        for (kind, count) in fault_counts {
            report.row(*kind, count);
        }
        for anomaly in environment.workers.anomalies.lock().unwrap().iter() {
            report.failure(anomaly);
        }
        report
    }

    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }

    fn row(&mut self, name: impl Into<String>, value: impl ToString) {
        self.rows.push((name.into(), value.to_string()));
    }

    fn failure(&mut self, what: &str) {
        writeln!(self.failures, "FAILED: {what}").unwrap();
    }

    fn add_requests(&mut self, requests: &HashMap<String, Request>, exits: &[Exit]) {
        self.row("requests", requests.len());
        let pairs: HashSet<_> = requests.values().map(|it| (&it.user, it.workflow)).collect();
        self.row("pairs of user and workflow", pairs.len());
        let events = requests.values().map(|request| request.events.len()).sum::<usize>();
        self.row("events, repeated ones included", events);
        let unanswered: Vec<_> =
            requests.iter().filter(|(_, request)| request.events.is_empty()).collect();
        self.row("**requests without an event**", unanswered.len());
        for (id, _) in unanswered {
            self.failure(&format!("{id} has no event\n{}", log_of(&[id], exits)));
        }
        let failed: Vec<_> = requests
            .iter()
            .filter(|(_, request)| request.events.iter().any(|event| !event.ready))
            .collect();
        let (expired, failed): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|(_, request)| has_expired(request));
        self.row("expired requests", expired.len());
        // No fault lasts as long as the retries of a request.
        self.row("**failed requests**", failed.len());
        for (id, request) in failed {
            let reasons: Vec<_> =
                request.events.iter().map(|event| &event.data["reason"]).collect();
            let log = log_of(&[id], exits);
            self.failure(&format!("no fault explains that {id} failed: {reasons:?}\n{log}"));
        }
        let mut waits: Vec<(Duration, &String)> = requests
            .iter()
            .filter_map(|(id, request)| {
                let first = request.events.first()?;
                Some((first.at.saturating_duration_since(request.published_at), id))
            })
            .collect();
        waits.sort_unstable();
        let median = waits.get(waits.len() / 2);
        if let (Some((longest, id)), Some((median, _))) = (waits.last(), median) {
            self.row("wait for the event, median", format!("{:.2} s", median.as_secs_f64()));
            self.row("wait for the event, longest", format!("{:.1} s", longest.as_secs_f64()));
            writeln!(self.notes, "{id} waited longest\n{}", log_of(&[id], exits)).unwrap();
        }
    }

    fn add_sessions(
        &mut self,
        sessions: &[Session],
        verdict: &Verdict<'_>,
        environment: &Environment,
        exits: &[Exit],
    ) {
        self.row("sessions", sessions.len());
        let pairs: HashSet<_> = sessions.iter().map(|session| &session.pair).collect();
        self.row("sessions beyond one for each pair", sessions.len() - pairs.len());
        for (cause, pairs) in &verdict.explained {
            let cause = match cause {
                Cause::WorkerKilled => "a worker was killed during the call or right after",
                Cause::GracePeriodOver => "a worker's grace period ended during the call",
                Cause::AnswerLost => "the platform's answer was lost or broken",
                Cause::PlatformUnreachable => "the network to the platform failed during the call",
                Cause::RedisDataLost => "Redis restarted without its data",
                Cause::RedisUnavailable => "Redis was unavailable",
                Cause::LeaseLost => "a lease was lost",
                Cause::WorkerStalled => "a worker was stalled",
                Cause::Renewed => "a renewal",
            };
            self.row(format!("– {cause}"), pairs.len());
            for (earlier, later) in pairs {
                let earlier = describe(earlier, environment);
                let later = describe(later, environment);
                writeln!(self.notes, "{later}\n  after {earlier}\n  {cause}").unwrap();
            }
        }
        self.row("– **unexplained**", verdict.unexplained.len());
        self.row("highest cost of a kill", verdict.max_cost_of_kill);
        for sessions in &verdict.unexplained {
            let mut failure = "no fault explains a session:\n".to_owned();
            for session in sessions {
                writeln!(failure, "  {}", describe(session, environment)).unwrap();
            }
            let ids: Vec<&String> = sessions.iter().map(|session| &session.request_id).collect();
            self.failure(&(failure + &log_of(&ids, exits)));
        }
    }

    /// Checks that each event has a session of its own user and workflow, and that repeated events
    /// have the same id.
    fn add_events(&mut self, requests: &HashMap<String, Request>, sessions: &[Session]) {
        let pairs: HashMap<&str, _> =
            sessions.iter().map(|session| (session.id.as_str(), &session.pair)).collect();
        let mut misdirected = 0;
        for (id, request) in requests {
            let pair = (request.user.clone(), request.workflow.to_owned());
            for event in &request.events {
                let first = &request.events[0];
                if first.ready == event.ready && first.id != event.id {
                    self.failure(&format!("{id} has an event with two ids"));
                }
                let session = event.data["sessionId"].as_str();
                if event.ready && session.and_then(|id| pairs.get(id)) != Some(&&pair) {
                    misdirected += 1;
                    self.failure(&format!("{id} has a session of another user or workflow"));
                }
            }
        }
        self.row("**links of another user or workflow**", misdirected);
    }
}

/// Whether the request failed only because it had expired.
fn has_expired(request: &Request) -> bool {
    let mut failures = request.events.iter().filter(|event| !event.ready);
    let is_expiry = |event: &ReceivedEvent| {
        event.data["reason"]["code"] == "request_expired"
            && request.expires_at.is_some_and(|end| end <= event.received)
    };
    failures.all(is_expiry)
}

fn describe(session: &Session, environment: &Environment) -> String {
    let at = |moment| format!("{:.3}", environment.seconds_at(moment));
    let Session { id, worker, request_id, answered, .. } = session;
    let started = at(session.started);
    let made = at(session.made);
    let ended = session.ended.map_or_else(|| "never".to_owned(), at);
    format!(
        "{id} by {worker} for {request_id}: started {started}, made {made}, ended {ended}, \
         answered {answered}"
    )
}

/// The log lines of all workers about these requests.
fn log_of(ids: &[&String], exits: &[Exit]) -> String {
    let mut lines = String::new();
    for exit in exits {
        for line in exit.output().lines() {
            if ids.iter().any(|id| line.contains(&format!("\"{id}\""))) {
                writeln!(lines, "  {}: {line}", exit.worker).unwrap();
            }
        }
    }
    lines
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.failures)?;
        if !self.is_good() {
            writeln!(f)?;
        }
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        writeln!(f, "| {:width$} | {:>8} |\n| {:-<width$} | {:->7}: |", "", "", "", "")?;
        for (name, value) in &self.rows {
            writeln!(f, "| {name:width$} | {value:>8} |")?;
        }
        Ok(())
    }
}
