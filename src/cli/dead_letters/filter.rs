//! Selects dead letters.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};

use crate::{
    broker::DeadLetter,
    config::{parse_duration, parse_rate},
};

/// The conditions that a dead letter must meet. Without any, all dead letters match.
#[derive(Args)]
pub(super) struct Filter {
    /// Request ids
    #[arg(value_name = "REQUEST_ID")]
    pub(super) request_ids: Vec<String>,
    /// Only those that failed for this reason, such as retries_exhausted
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Only those that failed longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// All of them
    #[arg(long, conflicts_with_all = ["request_ids", "reason", "older_than"])]
    all: bool,
}

/// Makes a command require a filter, so that it never changes the whole queue by mistake.
pub(super) fn required_filter() -> ArgGroup {
    let conditions = ["request_ids", "reason", "older_than", "all"];
    ArgGroup::new("filter").required(true).multiple(true).args(conditions)
}

impl Filter {
    /// Whether a dead letter with this request id meets all conditions.
    pub(super) fn matches(&self, letter: &DeadLetter, request_id: Option<&str>) -> bool {
        let by_id = self.request_ids.is_empty()
            || request_id.is_some_and(|id| self.request_ids.iter().any(|wanted| wanted == id));
        let by_reason = self.reason.is_none() || self.reason == letter.reason();
        // A dead letter of unknown age does not match.
        let by_age = self.older_than.is_none_or(|than| age(letter).is_some_and(|age| age > than));
        by_id && by_reason && by_age
    }
}

/// How long ago a request failed; `None` if that is unknown.
pub(super) fn age(letter: &DeadLetter) -> Option<Duration> {
    SystemTime::now().duration_since(letter.failed_at()?).ok()
}

/// Parses the interval between two replays from a rate such as `10/s` or `1000/1m`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "must be a rate such as 10/s or 1000/1m: a count, a slash, a duration";
    let (count, per) = text.split_once('/').ok_or(FORM)?;
    let one = if per.starts_with(|c: char| c.is_ascii_digit()) { "" } else { "1" };
    let rate = parse_rate(&format!("{count}/{one}{per}")).map_err(|_| FORM)?;
    Ok((rate.per / rate.count).max(Duration::from_micros(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_of_a_rate_may_lack_its_number() {
        assert_eq!(parse_interval("10/s"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_interval("10/1s"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_interval("30/m"), Ok(Duration::from_secs(2)));
        for invalid in ["", "10", "/s", "0/s", "10/", "10/x", "-1/s"] {
            assert!(parse_interval(invalid).is_err(), "{invalid}");
        }
    }
}
