//! The JSON form of tokens and sessions in Redis. Its keys are short to save memory.

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::{
    session::{Session, Token},
    units::unix_millis,
};

/// The last second that RFC 3339 can express, in milliseconds since 1970.
const LAST_SECOND_OF_9999: u64 = 253_402_300_799_000;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    /// The token.
    #[serde(borrow)]
    t: std::borrow::Cow<'a, str>,
    /// When the token expires, in milliseconds since 1970.
    e: u64,
    /// The session id, if there is a session.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    s: Option<std::borrow::Cow<'a, str>>,
    /// When the session was asked for, in milliseconds since 1970; absent in links of release 0.1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    m: Option<u64>,
}

pub(super) fn write_session(session: &Session) -> Vec<u8> {
    let Session { token, id, made_at } = session;
    write(token, Some(id), Some(unix_millis(*made_at)))
}

pub(super) fn write_token(token: &Token) -> Vec<u8> {
    write(token, None, None)
}

fn write(token: &Token, session: Option<&str>, made_at: Option<u64>) -> Vec<u8> {
    let stored = Stored {
        t: token.value.expose_secret().into(),
        e: unix_millis(token.expires_at),
        s: session.map(Into::into),
        m: made_at,
    };
    // Two strings and a number always serialize.
    serde_json::to_vec(&stored).unwrap_or_default()
}

pub(super) fn read_session(json: &[u8]) -> Option<Session> {
    let stored = read(json)?;
    let id = stored.s.as_deref().filter(|id| !id.is_empty())?.to_owned();
    Some(Session { token: token(&stored), id, made_at: date(stored.m.unwrap_or(0)) })
}

pub(super) fn read_token(json: &[u8]) -> Option<Token> {
    read(json).map(|stored| token(&stored))
}

/// Rejects a token that no HTTP header can carry, because the worker never writes one.
fn read(json: &[u8]) -> Option<Stored<'_>> {
    let stored: Stored<'_> = serde_json::from_slice(json).ok()?;
    let is_token =
        !stored.t.is_empty() && !stored.t.contains(|c: char| c.is_ascii_control() && c != '\t');
    is_token.then_some(stored)
}

fn token(stored: &Stored<'_>) -> Token {
    // The worker never writes an expiry that no date can express, so such a token counts as expired.
    Token { value: stored.t.clone().into_owned().into(), expires_at: date(stored.e) }
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

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    proptest! {
        #[test]
        fn sessions_read_as_they_were_written(
            value in r"[^\x00-\x08\x0a-\x1f\x7f]{1,99}",
            id in r"(?s).{1,99}",
            expiry_ms in 0..=LAST_SECOND_OF_9999,
            made_ms in 0..=LAST_SECOND_OF_9999,
        ) {
            let token = Token { value: value.clone().into(), expires_at: at(expiry_ms) };
            let read = read_token(&write_token(&token)).unwrap();
            prop_assert_eq!(read.value.expose_secret(), &value);
            prop_assert_eq!(read.expires_at, at(expiry_ms));
            let session = Session { token, id: id.clone(), made_at: at(made_ms) };
            let read = read_session(&write_session(&session)).unwrap();
            prop_assert_eq!(read.token.value.expose_secret(), &value);
            prop_assert_eq!(read.token.expires_at, at(expiry_ms));
            prop_assert_eq!(read.id, id);
            prop_assert_eq!(read.made_at, at(made_ms));
        }

        #[test]
        fn expiry_that_no_date_can_express_counts_as_expired(
            stored in prop_oneof![any::<u64>(), LAST_SECOND_OF_9999 - 9..LAST_SECOND_OF_9999 + 9],
        ) {
            let json = format!(r#"{{"t":"t","e":{stored},"s":"s"}}"#);
            let expected = if stored <= LAST_SECOND_OF_9999 { at(stored) } else { at(0) };
            prop_assert_eq!(read_session(json.as_bytes()).unwrap().token.expires_at, expected);
            prop_assert_eq!(read_token(json.as_bytes()).unwrap().expires_at, expected);
        }

        #[test]
        fn truncated_value_is_missing(
            value in "[a-z]{1,9}",
            id in "[a-z]{1,9}",
            cut: prop::sample::Index,
        ) {
            let token = Token { value: value.into(), expires_at: at(9) };
            let json = write_session(&Session { token, id, made_at: at(1) });
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
    fn token_without_session_is_no_session() {
        let token = Token { value: "t".to_owned().into(), expires_at: at(0) };
        assert!(read_session(&write_token(&token)).is_none());
        assert!(read_session(br#"{"t":"t","e":9,"s":""}"#).is_none());
    }

    #[test]
    fn malformed_value_is_missing() {
        let no_token = [r#"{"t":"","e":9,"s":"s"}"#, r#"{"t":"t\n","e":9,"s":"s"}"#];
        for malformed in ["", "{}", "\u{1}xyz", "[]"].into_iter().chain(no_token) {
            assert!(read_token(malformed.as_bytes()).is_none(), "{malformed}");
            assert!(read_session(malformed.as_bytes()).is_none(), "{malformed}");
        }
    }
}
