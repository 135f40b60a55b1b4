//! Which dead letters are meant.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};

use crate::{
    broker::DeadLetter,
    config::{parse_duration, parse_rate},
};

/// A choice; without any, all are meant.
#[derive(Args)]
pub(super) struct Chosen {
    /// By the requests' ids
    #[arg(value_name = "REQUEST_ID")]
    request_ids: Vec<String>,
    /// Those that failed for this reason, such as retries_exhausted
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Those that failed longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// All of them
    #[arg(long, conflicts_with_all = ["request_ids", "reason", "older_than"])]
    all: bool,
}

/// A choice that has to be made: nothing happens to all by default.
#[derive(Args)]
#[command(group = ArgGroup::new("chosen").required(true).multiple(true)
    .args(["request_ids", "reason", "older_than", "all"]))]
pub(super) struct Choice {
    #[command(flatten)]
    pub(super) chosen: Chosen,
}

impl Chosen {
    /// The ids that were asked for.
    pub(super) fn ids(&self) -> Vec<String> {
        self.request_ids.clone()
    }

    /// Whether a dead letter with this id is meant. Where several things are asked for, all must hold.
    pub(super) fn has(&self, letter: &DeadLetter, id: Option<&str>) -> bool {
        let by_id = self.request_ids.is_empty()
            || id.is_some_and(|id| self.request_ids.iter().any(|wanted| wanted == id));
        let by_reason = self.reason.is_none() || self.reason == letter.reason();
        let by_age = self.older_than.is_none_or(|age| {
            let failed_at = letter.failed_at();
            // Nobody knows how old it is: then it is not known to be old enough.
            failed_at.is_some_and(|at| {
                SystemTime::now().duration_since(at).is_ok_and(|since| since > age)
            })
        });
        by_id && by_reason && by_age
    }
}

/// The time between two, from a rate such as `10/s` or `1000/1m`.
pub(super) fn pace(text: &str) -> Result<Duration, String> {
    let (count, per) = text.split_once('/').unwrap_or((text, ""));
    let text = match per.starts_with(|c: char| c.is_ascii_digit()) {
        true => text.to_owned(),
        false => format!("{count}/1{per}"),
    };
    let rate = parse_rate(&text).map_err(|why| why.replace("1000/1m", "10/s or 1000/1m"))?;
    Ok((rate.per / rate.count).max(Duration::from_micros(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_written_with_or_without_the_one() {
        assert_eq!(pace("10/s"), Ok(Duration::from_millis(100)));
        assert_eq!(pace("10/1s"), Ok(Duration::from_millis(100)));
        assert_eq!(pace("30/m"), Ok(Duration::from_secs(2)));
        for wrong in ["", "10", "/s", "0/s", "10/", "10/x", "-1/s"] {
            assert!(pace(wrong).is_err(), "{wrong}");
        }
    }
}
