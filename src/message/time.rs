//! RFC 3339 dates.

use std::time::SystemTime;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Formats a date in UTC, rounded down to the millisecond, so that no link outlives its `expiresAt`.
///
/// Dates before 1970 or after 9999 become the nearest date in that range.
pub fn format_date_time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i128::try_from(since.as_millis()).unwrap_or(i128::MAX).saturating_mul(1_000_000);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Parses any RFC 3339 date.
pub(crate) fn parse_date_time(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}

pub(super) fn serialize_date_time<S: serde::Serializer>(
    at: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_date_time(*at))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fractions_of_a_millisecond_are_cut_not_rounded() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_999_999);
        assert_eq!(format_date_time(at), "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn dates_out_of_range_become_the_nearest_in_range() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(format_date_time(far), "9999-12-31T23:59:59Z");
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(format_date_time(before), "1970-01-01T00:00:00Z");
    }
}
