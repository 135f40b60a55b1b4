//! The texts of the pages.

use std::time::Duration;

use axum::http::StatusCode;
use time::OffsetDateTime;

use crate::sandbox::{
    inner_link::InnerLinkError,
    query::QueryError,
    tokens::{LinkError, SessionEnd},
};

/// Shown in place of a QR code.
pub(super) const NO_QR: &str = "<p id=\"qr\" class=\"no-qr\">This link is too long for a QR code. \
     Continue on this device instead.</p>";

/// Shown for a link to another host than the page's.
pub(super) const OTHER_HOST: &str = "<p class=\"other-host\">This link leads to \
     <bdi>{{host}}</bdi>, which is not the address of this page.</p>";

/// The setting that a worker needs to reach the sandbox over a network without TLS.
pub(super) const ALLOW_HTTP: &str = "HANDOFF_IDV_ALLOW_HTTP=true \\\n";

/// A page that explains what is wrong and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ErrorPage {
    pub(super) status: StatusCode,
    pub(super) title: &'static str,
    pub(super) problem: String,
    pub(super) remedy: &'static str,
}

const GET_NEW_LINK: &str = "Go back to where you got the link, and get a new one.";
const OPEN_WHOLE_LINK: &str = "Open the whole link exactly as you received it. \
     A program that builds the link must percent-encode each value once, like encodeURIComponent.";

impl ErrorPage {
    pub(super) fn query(error: QueryError) -> Self {
        let (title, problem) = match error {
            QueryError::Malformed(name) => (
                "This link is damaged",
                format!("The value of “{name}” is not valid percent-encoded UTF-8."),
            ),
            QueryError::Missing(name) => {
                ("This link is incomplete", format!("It has no value for “{name}”."))
            }
            QueryError::Duplicate(name) => {
                ("This link is damaged", format!("It contains “{name}” more than once."))
            }
        };
        Self { status: StatusCode::BAD_REQUEST, title, problem, remedy: OPEN_WHOLE_LINK }
    }

    pub(super) fn inner_link(error: InnerLinkError) -> Self {
        let (title, problem) = match error {
            InnerLinkError::NotAUrl => (
                "This link leads nowhere",
                "It contains no web address that starts with http:// or https://.",
            ),
            InnerLinkError::NotMobile => (
                "This link leads somewhere else",
                "It does not lead to a page of this platform. For your safety, it was not opened.",
            ),
            InnerLinkError::Incomplete => (
                "This link is incomplete",
                "The address in it has no “authorization” or no “sessionId”.",
            ),
        };
        Self {
            status: StatusCode::BAD_REQUEST,
            title,
            problem: problem.to_owned(),
            remedy: OPEN_WHOLE_LINK,
        }
    }

    pub(super) fn link(error: LinkError) -> Self {
        let (status, title, problem) = match error {
            LinkError::Unknown => (
                StatusCode::NOT_FOUND,
                "This link is unknown",
                "The sandbox did not issue its token, or has forgotten it: tokens are kept for ten \
                 minutes after they expire, and until the sandbox restarts.",
            ),
            LinkError::Expired => (
                StatusCode::GONE,
                "This link has expired",
                "Links work for a short time only, and this one’s time is over.",
            ),
            LinkError::OtherSession => (
                StatusCode::FORBIDDEN,
                "This link does not match",
                "Its token is valid, but belongs to another session.",
            ),
            LinkError::Ended(end) => (
                StatusCode::GONE,
                "This verification is over",
                match end {
                    SessionEnd::Finished => "It was finished. Its link opens nothing any more.",
                    SessionEnd::Closed => {
                        "It was closed before it was finished. Its link opens nothing any more."
                    }
                    SessionEnd::TimedOut => {
                        "It was not finished in the time that its workflow allows."
                    }
                },
            ),
        };
        Self { status, title, problem: problem.to_owned(), remedy: GET_NEW_LINK }
    }

    pub(super) fn form() -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            title: "Nothing was changed",
            problem: "The page that sent this form is not one of the sandbox.".to_owned(),
            remedy: "Open your link again.",
        }
    }

    pub(super) fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            title: "Page not found",
            problem: "The sandbox has no page at this address.".to_owned(),
            remedy: "If you followed a link, check that you opened the whole link.",
        }
    }
}

/// Formats a time for people: `14:05 UTC, 3 March 2031`.
pub(super) fn time_of_day(time: OffsetDateTime) -> String {
    let hour = time.hour();
    let minute = time.minute();
    let (day, month, year) = (time.day(), time.month(), time.year());
    format!("{hour:02}:{minute:02} UTC, {day} {month} {year}")
}

/// Formats a duration for people, rounded down: `59 minutes`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
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
    fn times_are_formatted_for_people() {
        let at = OffsetDateTime::from_unix_timestamp(1_930_399_500).unwrap();
        assert_eq!(time_of_day(at), "14:05 UTC, 4 March 2031");
    }

    #[test]
    fn durations_are_rounded_down() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (3_599, "59 minutes"),
            (7_199, "119 minutes"),
            (86_399, "23 hours"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
