//! How far a server's clock is off.

use std::time::Duration;

use super::{
    check::{Check, Tolerance, Verdict},
    format::span,
};

/// Checks a server's clock, which is `ahead_ms` ahead of this machine's.
pub(super) fn check(whose: &str, ahead_ms: i128, tolerance: &Tolerance) -> Check {
    let skew = Duration::from_millis(u64::try_from(ahead_ms.abs()).unwrap_or(u64::MAX));
    let verdict = tolerance.verdict(skew);
    if verdict == Verdict::Ok {
        let within = span(tolerance.hint);
        return Check::ok("clock", format!("{whose} clock is within {within} of this machine's"));
    }
    let which = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let what = format!("{whose} clock is {} s {which} this machine's", skew.as_secs());
    Check::new("clock", verdict, what)
        .cost("links expire earlier or later than their events say; requests expire at the wrong time")
        .remedy("check on both machines that NTP is running")
        .command("timedatectl status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_counts_in_both_directions() {
        let tolerance =
            Tolerance { hint: Duration::from_secs(2), finding: Duration::from_secs(30) };
        let verdict = |ahead_ms| check("Redis'", ahead_ms, &tolerance).verdict;
        assert_eq!((verdict(0), verdict(-1_999)), (Verdict::Ok, Verdict::Ok));
        assert_eq!((verdict(2_000), verdict(-29_000)), (Verdict::Hint, Verdict::Hint));
        assert_eq!((verdict(30_000), verdict(-90_000)), (Verdict::Finding, Verdict::Finding));
    }
}
