//! The table at the end.

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Write},
    time::Duration,
};

use crate::{
    book::Session,
    crowd::{Asked, Crowd},
    fleet::{End, QUEUE},
    stage::Stage,
    verdict::{Cause, Verdict, judge},
};

/// What a campaign comes to.
pub struct Report {
    rows: Vec<(String, String)>,
    wrong: String,
    /// Every session beyond a person's first, with the reason.
    pub notes: String,
}

impl Report {
    pub async fn of(stage: &Stage, crowd: &Crowd, ends: &[End], harm: &[(&str, usize)]) -> Self {
        let mut report = Self { rows: Vec::new(), wrong: String::new(), notes: String::new() };
        let dead = crowd.depth(&format!("{QUEUE}.dead")).await;
        let left = crowd.depth(QUEUE).await;
        let asked = crowd.asked.lock().unwrap();
        let sessions = stage.platform.sessions();
        report.requests(&asked, ends);
        report.row("dead letters", dead);
        report.row("requests still in the queue", left);
        report.sessions(&sessions, &judge(&sessions, ends, &stage.spans()), stage, ends);
        report.events(&asked, &sessions);
        for (what, times) in harm {
            report.row(*what, times);
        }
        for odd in stage.fleet.oddities.lock().unwrap().iter() {
            report.wrong(odd);
        }
        report
    }

    pub fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }

    fn row(&mut self, name: impl Into<String>, value: impl ToString) {
        self.rows.push((name.into(), value.to_string()));
    }

    fn wrong(&mut self, what: &str) {
        writeln!(self.wrong, "WRONG: {what}").unwrap();
    }

    fn requests(&mut self, asked: &HashMap<String, Asked>, ends: &[End]) {
        self.row("requests", asked.len());
        let pairs: HashSet<_> = asked.values().map(|asked| (&asked.user, asked.workflow)).collect();
        self.row("pairs of user and workflow", pairs.len());
        let events = asked.values().map(|asked| asked.heard.len()).sum::<usize>();
        self.row("events, repeats included", events);
        let without: Vec<_> = asked.iter().filter(|(_, asked)| asked.heard.is_empty()).collect();
        self.row("**requests without an event**", without.len());
        for (id, _) in without {
            self.wrong(&format!("{id} has no event\n{}", log_of(&[id], ends)));
        }
        let failed: Vec<_> = asked
            .iter()
            .filter(|(_, asked)| asked.heard.iter().any(|heard| !heard.ready))
            .collect();
        self.row("requests that failed", failed.len());
        for (id, asked) in failed {
            let reasons: Vec<_> = asked.heard.iter().map(|heard| &heard.data["reason"]).collect();
            writeln!(self.notes, "{id} failed: {reasons:?}\n{}", log_of(&[id], ends)).unwrap();
        }
        let mut waits: Vec<(Duration, &String)> = asked
            .iter()
            .filter_map(|(id, asked)| {
                Some((asked.heard.first()?.at.saturating_duration_since(asked.at), id))
            })
            .collect();
        waits.sort_unstable();
        let middle = waits.get(waits.len() / 2);
        if let (Some((longest, id)), Some((median, _))) = (waits.last(), middle) {
            self.row("wait for the event, median", format!("{:.2} s", median.as_secs_f64()));
            self.row("wait for the event, longest", format!("{:.1} s", longest.as_secs_f64()));
            writeln!(self.notes, "{id} waited longest\n{}", log_of(&[id], ends)).unwrap();
        }
    }

    fn sessions(
        &mut self,
        sessions: &[Session],
        verdict: &Verdict<'_>,
        stage: &Stage,
        ends: &[End],
    ) {
        self.row("sessions", sessions.len());
        let pairs: HashSet<_> = sessions.iter().map(|session| &session.pair).collect();
        self.row("sessions beyond one for each pair", sessions.len() - pairs.len());
        for (why, extra) in &verdict.extra {
            let why = match why {
                Cause::WorkerKilled => "a worker was killed during the call or right after",
                Cause::GraceOver => "a worker's grace period ended during the call",
                Cause::AnswerLost => "the platform's answer was lost or broken",
                Cause::PlatformCut => "the network to the platform broke during the call",
                Cause::RedisForgot => "Redis was started again, empty",
                Cause::RedisAway => "Redis could not be reached",
                Cause::LeaseLost => "a lease was lost",
                Cause::WorkerStalled => "a worker was stalled",
            };
            self.row(format!("– {why}"), extra.len());
            for (earlier, later) in extra {
                let (earlier, later) = (told(earlier, stage), told(later, stage));
                writeln!(self.notes, "{later}\n  after {earlier}\n  {why}").unwrap();
            }
        }
        self.row("– **for no reason**", verdict.unexplained.len());
        self.row("most that one kill has cost", verdict.most_by_one_kill);
        for sessions in &verdict.unexplained {
            let mut what = "a session for no reason:\n".to_owned();
            for session in sessions {
                writeln!(what, "  {}", told(session, stage)).unwrap();
            }
            let ids: Vec<&String> = sessions.iter().map(|session| &session.request_id).collect();
            self.wrong(&(what + &log_of(&ids, ends)));
        }
    }

    /// Each event must tell of a session of the same person, and repeats must have the same id.
    fn events(&mut self, asked: &HashMap<String, Asked>, sessions: &[Session]) {
        let pairs: HashMap<&str, _> =
            sessions.iter().map(|session| (session.id.as_str(), &session.pair)).collect();
        let mut others = 0;
        for (id, asked) in asked {
            for heard in &asked.heard {
                let same = |first: &crate::crowd::Heard| {
                    first.ready != heard.ready || first.event_id == heard.event_id
                };
                if !asked.heard.first().is_none_or(same) {
                    self.wrong(&format!("two ids of one event: {id}"));
                }
                let session = heard.data["sessionId"].as_str();
                let pair = (asked.user.clone(), asked.workflow.to_owned());
                if heard.ready && session.and_then(|id| pairs.get(id)) != Some(&&pair) {
                    others += 1;
                    self.wrong(&format!("{id} was told of another person's session"));
                }
            }
        }
        self.row("**links told to the wrong person**", others);
    }
}

fn told(session: &Session, stage: &Stage) -> String {
    let at = |moment| format!("{:.3}", stage.seconds(moment));
    let Session { id, worker, request_id, begun, made, over, answered, .. } = session;
    let over = over.map_or_else(|| "never".to_owned(), at);
    let (begun, made) = (at(*begun), at(*made));
    format!(
        "{id} by {worker} for {request_id}: begun {begun}, made {made}, over {over}, answered {answered}"
    )
}

/// What workers logged about these requests.
fn log_of(ids: &[&String], ends: &[End]) -> String {
    let mut lines = String::new();
    for end in ends {
        for line in end.log().lines() {
            if ids.iter().any(|id| line.contains(&format!("\"{id}\""))) {
                writeln!(lines, "  {}: {line}", end.worker).unwrap();
            }
        }
    }
    lines
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.wrong)?;
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
