//! The JSON form of tokens and sessions in Redis. Its keys are short to save memory.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::{
    session::{Access, Lifetimes, Session, Token},
    units::unix_millis,
};

/// The last second that RFC 3339 can express, in milliseconds since 1970.
const LAST_SECOND_OF_9999: u64 = 253_402_300_799_000;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    /// The token, which release 0.1 requires; absent in links of the one-call flow.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    t: Option<Cow<'a, str>>,
    /// The link of the one-call flow.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    u: Option<Cow<'a, str>>,
    /// When the token or the link ends, in milliseconds since 1970. Release 0.1 stored the token's end with links,
    /// and takes this for the end of ours.
    e: u64,
    /// The session id, if there is a session.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    s: Option<Cow<'a, str>>,
    /// When the session was asked for, in milliseconds since 1970; absent in links of release 0.1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    m: Option<u64>,
}

pub(super) fn write_session(session: &Session) -> Vec<u8> {
    let Session { access, id, made_at, expires_at } = session;
    let (t, u) = match access {
        Access::Token(token) => (Some(token.expose_secret().into()), None),
        Access::Link(link) => (None, Some(link.expose_secret().into())),
    };
    let e = unix_millis(*expires_at);
    write(&Stored { t, u, e, s: Some(id.into()), m: Some(unix_millis(*made_at)) })
}

pub(super) fn write_token(token: &Token) -> Vec<u8> {
    let t = Some(token.value.expose_secret().into());
    write(&Stored { t, u: None, e: unix_millis(token.expires_at), s: None, m: None })
}

fn write(stored: &Stored<'_>) -> Vec<u8> {
    // Strings and numbers always serialize.
    serde_json::to_vec(stored).unwrap_or_default()
}

/// Reads a session. Its link may have been stored under other settings or by release 0.1, and ends with its
/// session all the same.
pub(super) fn read_session(json: &[u8], lifetimes: &Lifetimes) -> Option<Session> {
    let Stored { t, u, e, s, m } = read(json)?;
    let access = match (t.filter(|token| is_token(token)), u.filter(|link| is_link(link))) {
        (Some(token), None) => Access::Token(token.into_owned().into()),
        (None, Some(link)) => Access::Link(link.into_owned().into()),
        _ => return None,
    };
    let id = s.filter(|id| !id.is_empty())?.into_owned();
    let end = date(e);
    // Release 0.1 gave links the end of their tokens.
    let made_at = m.map_or_else(|| lifetimes.token_start(end), date);
    Some(Session { access, id, made_at, expires_at: lifetimes.link_end(made_at, end) })
}

pub(super) fn read_token(json: &[u8]) -> Option<Token> {
    let stored = read(json)?;
    let value = stored.t.filter(|token| is_token(token))?.into_owned().into();
    Some(Token { value, expires_at: date(stored.e) })
}

fn read(json: &[u8]) -> Option<Stored<'_>> {
    serde_json::from_slice(json).ok()
}

/// The worker never writes a token that no HTTP header can carry.
fn is_token(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_ascii_control() && c != '\t')
}

/// The worker never writes a link with a character that no URL contains.
fn is_link(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A time that no date can express counts as long past: the worker never writes one.
fn date(ms: u64) -> SystemTime {
    let ms = if ms > LAST_SECOND_OF_9999 { 0 } else { ms };
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 3_600);

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    fn lifetimes(session: Duration) -> Lifetimes {
        Lifetimes { token: HOUR, session, link_min: Duration::ZERO }
    }

    fn read_session(json: &[u8]) -> Option<Session> {
        super::read_session(json, &lifetimes(100 * CENTURY))
    }

    fn secret(access: &Access) -> (&str, bool) {
        match access {
            Access::Token(token) => (token.expose_secret(), true),
            Access::Link(link) => (link.expose_secret(), false),
        }
    }

    proptest! {
        #[test]
        fn sessions_read_as_they_were_written(
            value in r"[^\x00-\x08\x0a-\x1f\x7f]{1,99}",
            link in "[!-~]{1,99}",
            is_token: bool,
            id in r"(?s).{1,99}",
            expiry_ms in 0..=LAST_SECOND_OF_9999,
            made_ms in 0..=LAST_SECOND_OF_9999,
        ) {
            let token = Token { value: value.clone().into(), expires_at: at(expiry_ms) };
            let read = read_token(&write_token(&token)).unwrap();
            prop_assert_eq!(read.value.expose_secret(), &value);
            prop_assert_eq!(read.expires_at, at(expiry_ms));
            let access = if is_token { Access::Token(value.into()) } else { Access::Link(link.into()) };
            let session = Session {
                access: access.clone(), id: id.clone(), made_at: at(made_ms), expires_at: at(expiry_ms),
            };
            let read = read_session(&write_session(&session)).unwrap();
            prop_assert_eq!(secret(&read.access), secret(&access));
            prop_assert_eq!(read.expires_at, at(expiry_ms));
            prop_assert_eq!(read.id, id);
            prop_assert_eq!(read.made_at, at(made_ms));
        }

        #[test]
        fn expiry_that_no_date_can_express_counts_as_expired(
            stored in prop_oneof![any::<u64>(), LAST_SECOND_OF_9999 - 9..LAST_SECOND_OF_9999 + 9],
        ) {
            let json = format!(r#"{{"t":"t","e":{stored},"s":"s"}}"#);
            let expected = if stored <= LAST_SECOND_OF_9999 { at(stored) } else { at(0) };
            prop_assert_eq!(read_session(json.as_bytes()).unwrap().expires_at, expected);
            prop_assert_eq!(read_token(json.as_bytes()).unwrap().expires_at, expected);
        }

        #[test]
        fn truncated_value_is_missing(
            value in "[a-z]{1,9}",
            id in "[a-z]{1,9}",
            cut: prop::sample::Index,
        ) {
            let access = Access::Token(value.into());
            let session = Session { access, id, made_at: at(1), expires_at: at(9) };
            let json = write_session(&session);
            let truncated = &json[..cut.index(json.len())];
            prop_assert!(read_session(truncated).is_none());
            prop_assert!(read_token(truncated).is_none());
        }

        #[test]
        fn arbitrary_bytes_are_missing(bytes: Vec<u8>) {
            prop_assert!(read_session(&bytes).is_none());
            prop_assert!(read_token(&bytes).is_none());
        }
    }

    #[test]
    fn last_date_that_can_be_written_is_the_limit() {
        let text = |millis| crate::message::format_date_time(at(millis));
        assert_eq!(text(LAST_SECOND_OF_9999), "9999-12-31T23:59:59Z");
        assert_eq!(text(LAST_SECOND_OF_9999 - 1_000), "9999-12-31T23:59:58Z");
        assert_eq!(text(LAST_SECOND_OF_9999 + 1_000), "9999-12-31T23:59:59Z", "saturates");
    }

    #[test]
    fn link_ends_with_its_session_whatever_was_stored() {
        let ends = |json: &str, session| {
            let session = super::read_session(json.as_bytes(), &lifetimes(session)).unwrap();
            session.expires_at.duration_since(at(0)).unwrap()
        };
        let minute = HOUR / 60;
        // Stored by release 0.1, two hours after 1970: made one token's life earlier.
        let old = r#"{"t":"t","e":7200000,"s":"s"}"#;
        assert_eq!(ends(old, HOUR), 2 * HOUR);
        assert_eq!(ends(old, minute), HOUR + minute);
        // Stored while sessions were set to live longer.
        let longer = r#"{"t":"t","e":7200000,"s":"s","m":5400000}"#;
        assert_eq!(ends(longer, HOUR), 2 * HOUR);
        assert_eq!(ends(longer, minute), HOUR + 31 * minute);
        let link = r#"{"u":"https://x/mobile?","e":7200000,"s":"s","m":5400000}"#;
        assert_eq!(ends(link, minute), HOUR + 31 * minute);
    }

    #[test]
    fn links_of_the_two_call_flow_have_the_form_that_release_0_1_reads() {
        let session = Session {
            access: Access::Token("t".to_owned().into()),
            id: "s".to_owned(),
            made_at: at(2),
            expires_at: at(9),
        };
        assert_eq!(write_session(&session), br#"{"t":"t","e":9,"s":"s","m":2}"#);
        let token = Token { value: "t".to_owned().into(), expires_at: at(9) };
        assert_eq!(write_token(&token), br#"{"t":"t","e":9}"#);
    }

    #[test]
    fn token_without_session_is_no_session() {
        let token = Token { value: "t".to_owned().into(), expires_at: at(0) };
        assert!(read_session(&write_token(&token)).is_none());
        assert!(read_session(br#"{"t":"t","e":9,"s":""}"#).is_none());
    }

    #[test]
    fn malformed_value_is_missing() {
        let malformed = [
            "",
            "{}",
            "\u{1}xyz",
            "[]",
            r#"{"t":"","e":9,"s":"s"}"#,
            r#"{"t":"t\n","e":9,"s":"s"}"#,
            r#"{"u":"","e":9,"s":"s"}"#,
            r#"{"u":"x y","e":9,"s":"s"}"#,
        ];
        for malformed in malformed {
            assert!(read_token(malformed.as_bytes()).is_none(), "{malformed}");
            assert!(read_session(malformed.as_bytes()).is_none(), "{malformed}");
        }
        assert!(read_session(br#"{"t":"t","u":"x","e":9,"s":"s"}"#).is_none(), "both");
    }
}
