//! What is wrong with the settings and the servers around a worker, and what mends it.
//!
//! The four areas are looked at side by side. Nothing here changes anything: RabbitMQ is asked only about
//! what is there, Redis gets one key that goes at once, and the platform is called only where that is
//! asked for.

mod certificate;
mod platform;
mod rabbitmq;
mod reach;
mod redis;
mod settings;
mod topology;

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::config::Settings;

/// Limit of looking at one server, beyond the limits of each step.
const AREA_LIMIT: Duration = Duration::from_secs(30);

/// How one thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; may well be meant so.
    Hint,
    /// Wrong.
    Finding,
}

/// One thing that was looked at. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// `settings`, `rabbitmq`, `redis` or `platform`.
    pub area: &'static str,
    /// What was looked at.
    pub name: &'static str,
    /// How it was found.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What that costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What mends it, or where to look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Commands that do so, or that show more. Words in capitals are to be filled in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            area: "",
            name,
            verdict,
            what: what.into(),
            cost: None,
            remedy: None,
            commands: vec![],
        }
    }

    fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, what)
    }

    fn hint(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Hint, what)
    }

    fn finding(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Finding, what)
    }

    fn costs(mut self, cost: impl Into<String>) -> Self {
        self.cost = Some(cost.into());
        self
    }

    fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn run(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}

/// Looks at everything that a worker with these settings needs. With `probe`, one token of the least life
/// is asked for, to see whether the key is good.
pub(crate) async fn examine(settings: &Settings, probe: bool) -> Vec<Check> {
    let areas = tokio::join!(
        bounded("settings", async |checks| settings::examine(settings, checks)),
        bounded("rabbitmq", async |checks| rabbitmq::examine(settings, checks).await),
        bounded("redis", async |checks| redis::examine(&settings.cache, checks).await),
        bounded("platform", async |checks| platform::examine(&settings.platform, probe, checks)
            .await),
    );
    [areas.0, areas.1, areas.2, areas.3].concat()
}

/// What was found by then counts, whatever comes after it.
async fn bounded(area: &'static str, examine: impl AsyncFnOnce(&mut Vec<Check>)) -> Vec<Check> {
    let mut checks = Vec::new();
    if timeout(AREA_LIMIT, examine(&mut checks)).await.is_err() {
        let what = format!("looking at it took more than {} s", AREA_LIMIT.as_secs());
        checks.push(Check::finding("time", what).costs("the rest is not known"));
    }
    checks.iter_mut().for_each(|check| check.area = area);
    checks
}

/// A duration for people, by its largest unit that leaves nothing over; milliseconds below a second.
fn span(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1_000 => format!("{millis} ms"),
        _ if millis.is_multiple_of(3_600_000) => format!("{} h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{} min", millis / 60_000),
        1_000..10_000 if !millis.is_multiple_of(1_000) => {
            format!("{:.1} s", duration.as_secs_f64())
        }
        _ => format!("{} s", millis / 1_000),
    }
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// About another clock, which is so many milliseconds ahead of ours.
fn skew(name: &'static str, whose: &str, ahead: i64, some: Duration, much: Duration) -> Check {
    let off = Duration::from_millis(ahead.unsigned_abs());
    let which = if ahead < 0 { "behind" } else { "ahead of" };
    if off < some {
        return Check::ok(
            name,
            format!("{whose} clock goes with this machine's, within {}", span(some)),
        );
    }
    let check = if off < much { Check::hint } else { Check::finding };
    check(name, format!("{whose} clock is {} s {which} this machine's", off.as_secs()))
        .costs("links end sooner or later than their events say, and requests expire at the wrong time")
        .mend("see on both machines whether NTP is on")
        .run("timedatectl status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_whichever_way_it_is_off() {
        let verdict = |ahead| {
            skew("clock", "Redis'", ahead, Duration::from_secs(2), Duration::from_secs(30)).verdict
        };
        assert_eq!((verdict(0), verdict(-1_999)), (Verdict::Ok, Verdict::Ok));
        assert_eq!((verdict(2_000), verdict(-29_000)), (Verdict::Hint, Verdict::Hint));
        assert_eq!((verdict(30_000), verdict(-90_000)), (Verdict::Finding, Verdict::Finding));
    }

    #[test]
    fn spans_are_told_by_a_unit_that_fits() {
        for (millis, text) in [
            (250, "250 ms"),
            (1_500, "1.5 s"),
            (10_000, "10 s"),
            (60_000, "1 min"),
            (90_000, "90 s"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
