//! The units settings are written in: durations, rates, yes or no.

use std::time::Duration;

/// Reads a duration such as `250ms`, `10s`, `5m` or `1h`: a whole number and one unit.
///
/// # Errors
/// A sentence that says how durations are written; it never repeats the value.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "must be a duration such as 250ms, 10s, 5m or 1h";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| FORM.to_owned())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(FORM.to_owned()),
    };
    match millis {
        // A century: anything longer is a slip, and would overflow dates further on.
        Some(millis) if millis <= 100 * 366 * 24 * 3_600_000 => Ok(Duration::from_millis(millis)),
        _ => Err("is too long a duration".to_owned()),
    }
}

/// Reads a rate such as `1000/1m`: so many in a window of that length.
///
/// # Errors
/// A sentence that says how rates are written; it never repeats the value.
pub fn parse_rate(text: &str) -> Result<(u32, Duration), String> {
    const FORM: &str = "must be a rate such as 1000/1m: a count, a slash, a duration";
    let (count, per) = text.split_once('/').ok_or_else(|| FORM.to_owned())?;
    let count = parse_whole(count).ok_or_else(|| FORM.to_owned())?;
    let count = u32::try_from(count).map_err(|_| FORM.to_owned())?;
    let per = parse_duration(per).map_err(|_| FORM.to_owned())?;
    if count == 0 || per.is_zero() {
        return Err("must allow at least one in a window longer than nothing".to_owned());
    }
    Ok((count, per))
}

/// Reads digits only: no sign, no space, no underscore.
pub(super) fn parse_whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
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
    fn rates_are_a_count_and_a_window() {
        assert_eq!(parse_rate("1000/1m"), Ok((1000, Duration::from_secs(60))));
        for wrong in ["", "10", "10/", "/1m", "0/1m", "10/0s", "+1/1m", "1/1m/1m", "5000000000/1s"]
        {
            assert!(parse_rate(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn every_duration_reads_as_it_is_written(number in 0u64..800_000) {
            for (unit, millis) in [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)] {
                let duration = Duration::from_millis(number * millis);
                prop_assert_eq!(parse_duration(&format!("{number}{unit}")), Ok(duration));
            }
        }
    }
}
