//! How long certificates still hold.

use std::time::{Duration, SystemTime};

use super::Check;
use crate::message::format_date_time;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Less than this is too little: time to notice, and to get another one.
const LEAST: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// About the certificate of a server that was reached by TLS.
pub(super) fn check(until: Option<SystemTime>, now: SystemTime) -> Option<Check> {
    let until = until?;
    let left = until.duration_since(now).unwrap_or_default();
    let (days, date) = (left.as_secs() / DAY.as_secs(), format_date_time(until));
    Some(match left < LEAST {
        true => Check::finding("certificate", format!("ends in {days} days, at {date}"))
            .costs("from then on no connection is made")
            .mend("renew it, and see why that has not happened by itself"),
        false => Check::ok("certificate", format!("holds for another {days} days, until {date}")),
    })
}
