//! The units of settings: durations, rates, whole numbers.

use std::{str::FromStr, time::Duration};

use super::{
    setting::{ParseResult, ensure},
    settings::RateLimit,
};

/// A century. A longer duration is a typing error, and would overflow dates later on.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);

/// Parses a duration such as `250ms`, `10s`, `5m` or `1h`: a whole number and one unit.
pub(crate) fn parse_duration(text: &str) -> ParseResult<Duration> {
    const FORM: &str = "must be a duration such as 250ms, 10s, 5m or 1h";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| FORM)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(FORM),
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or("must be at most 878400h, a century")
}

pub(super) fn positive_duration(text: &str) -> ParseResult<Duration> {
    let duration = parse_duration(text)?;
    ensure(!duration.is_zero(), "must be greater than zero")?;
    Ok(duration)
}

/// At most a minute: a killed worker's lease, for which its user's next request waits, lasts even longer.
pub(super) fn redis_patience(text: &str) -> ParseResult<Duration> {
    let patience = parse_duration(text)?;
    ensure(patience <= Duration::from_secs(60), "must be at most 1m")?;
    Ok(patience)
}

pub(super) fn whole_seconds(text: &str) -> ParseResult<Duration> {
    let duration = positive_duration(text)?;
    ensure(duration.subsec_nanos() == 0, "must be whole seconds")?;
    Ok(duration)
}

/// Parses a rate such as `1000/1m`: a count, a slash, and the window that it applies to.
pub(crate) fn parse_rate(text: &str) -> ParseResult<RateLimit> {
    const FORM: &str = "must be a rate such as 1000/1m: a count, a slash, a duration";
    let (count, per) = text.split_once('/').ok_or(FORM)?;
    let count = parse_whole(count).ok_or(FORM)?;
    let per = parse_duration(per).map_err(|_| FORM)?;
    ensure(count > 0 && !per.is_zero(), "must have a count and a duration greater than zero")?;
    Ok(RateLimit { count, per })
}

/// Parses digits only: no sign, space or underscore.
pub(super) fn parse_whole<T: FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn duration_is_a_whole_number_and_one_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "10", "s", "-1s", "+1s", "1.5s", "10 s", " 10s", "10S", "1d", "1m30s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse_duration("99999999999999999999h").is_err());
        assert!(parse_duration("18446744073709551615h").is_err());
    }

    #[test]
    fn rate_is_a_count_and_a_window() {
        assert_eq!(
            parse_rate("1000/1m"),
            Ok(RateLimit { count: 1000, per: Duration::from_secs(60) })
        );
        for wrong in ["", "10", "10/", "/1m", "0/1m", "10/0s", "+1/1m", "1/1m/1m", "5000000000/1s"]
        {
            assert!(parse_rate(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn every_unit_has_its_factor(number in 0u64..800_000) {
            for (unit, millis) in [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] {
                let duration = Duration::from_millis(number * millis);
                prop_assert_eq!(parse_duration(&format!("{number}{unit}")), Ok(duration));
            }
        }
    }
}
