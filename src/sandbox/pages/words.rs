//! What the pages say: when a link ends, and why something does not work.

use std::time::Duration;

use axum::http::StatusCode;
use time::OffsetDateTime;

use crate::sandbox::{escapes::BadQuery, inner_link::BadInnerLink, tokens::BadLink};

/// In place of a QR code.
pub(super) const NO_QR: &str = "<p id=\"qr\" class=\"no-qr\">This link is too long for a QR code. \
     Continue on this device instead.</p>";

/// Beside a link that leads to another host.
pub(super) const LEADS_AWAY: &str = "<p class=\"away\">This link leads to <bdi>{{host}}</bdi>, \
     which is not the address of this page.</p>";

/// What a worker needs where the platform is reached over a network without TLS.
pub(super) const ALLOW_HTTP: &str = "HANDOFF_IDV_ALLOW_HTTP=true \\\n";

/// Cause a page cannot be shown, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    pub(super) why: String,
    pub(super) remedy: &'static str,
}

const ASK_AGAIN: &str = "Go back to where you got the link and ask for a new one.";
const WHOLE_LINK: &str = "Open the whole link, as you received it. If it comes from a program, \
     that program has to escape each value exactly once, as encodeURIComponent does.";

impl Trouble {
    pub(super) fn query(why: BadQuery) -> Self {
        let (title, why) = match why {
            BadQuery::Malformed(name) => (
                "This link is garbled",
                format!("The value of “{name}” is not percent-encoded UTF-8."),
            ),
            BadQuery::Missing(name) => {
                ("This link is incomplete", format!("It should hold “{name}”, and does not."))
            }
            BadQuery::Twice(name) => {
                ("This link is garbled", format!("It holds “{name}” more than once."))
            }
        };
        Self { status: StatusCode::BAD_REQUEST, title, why, remedy: WHOLE_LINK }
    }

    pub(super) fn inner_link(why: BadInnerLink) -> Self {
        let (title, why) = match why {
            BadInnerLink::NoAddress => (
                "This link leads nowhere",
                "It holds no web address that starts with http:// or https://.",
            ),
            BadInnerLink::Elsewhere => (
                "This link leads somewhere else",
                "It should lead to a page of this platform. For your safety it is not opened.",
            ),
            BadInnerLink::Incomplete => (
                "This link is incomplete",
                "What it leads to should hold “authorization” and “sessionId”, and does not.",
            ),
        };
        Self { status: StatusCode::BAD_REQUEST, title, why: why.to_owned(), remedy: WHOLE_LINK }
    }

    pub(super) fn link(why: BadLink) -> Self {
        let (status, title, why) = match why {
            BadLink::Unknown => (
                StatusCode::NOT_FOUND,
                "This link is not known",
                "Its token was not made here, or ended a while ago. A restart of the sandbox \
                 forgets all of them.",
            ),
            BadLink::Ended => (
                StatusCode::GONE,
                "This link has ended",
                "Links are short-lived, and the time of this one is over.",
            ),
            BadLink::OtherSession => (
                StatusCode::FORBIDDEN,
                "This link does not fit",
                "Its token is live, but not for this session.",
            ),
        };
        Self { status, title, why: why.to_owned(), remedy: ASK_AGAIN }
    }

    pub(super) fn no_page() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            title: "There is no such page",
            why: "The sandbox has nothing at this address.".to_owned(),
            remedy: "If you followed a link, open it once more, the whole of it.",
        }
    }
}

/// A moment as people read it: `14:05 UTC, 3 March 2031`.
pub(super) fn moment(moment: OffsetDateTime) -> String {
    let (hour, minute) = (moment.hour(), moment.minute());
    let (day, month, year) = (moment.day(), moment.month(), moment.year());
    format!("{hour:02}:{minute:02} UTC, {day} {month} {year}")
}

/// How long is left, roughly, and never more than there is: `59 minutes`.
pub(super) fn left(left: Duration) -> String {
    let seconds = left.as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        _ => (seconds / 3_600, "hour"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_for_people() {
        let at = OffsetDateTime::from_unix_timestamp(1_930_399_500).unwrap();
        assert_eq!(moment(at), "14:05 UTC, 4 March 2031");
    }

    #[test]
    fn what_is_left_is_rounded_down() {
        for (seconds, words) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (3_599, "59 minutes"),
            (7_199, "119 minutes"),
            (86_399, "23 hours"),
        ] {
            assert_eq!(left(Duration::from_secs(seconds)), words);
        }
    }
}
