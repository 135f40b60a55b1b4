//! What is stored, as JSON: short keys, since there are many of them.

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::{
    session::{Session, Token},
    units::millis,
};

/// The last second that RFC 3339 can tell, in milliseconds since 1970.
const YEAR_9999: u64 = 253_402_300_799_000;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    /// The token.
    #[serde(borrow)]
    t: std::borrow::Cow<'a, str>,
    /// Its end, in milliseconds since 1970.
    e: u64,
    /// The session, where there is one.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    s: Option<std::borrow::Cow<'a, str>>,
}

pub(super) fn write_session(session: &Session) -> Vec<u8> {
    write(&session.token, Some(&session.id))
}

pub(super) fn write_token(token: &Token) -> Vec<u8> {
    write(token, None)
}

pub(super) fn read_session(json: &[u8]) -> Option<Session> {
    let stored = read(json)?;
    let id = stored.s.as_deref().filter(|id| !id.is_empty())?.to_owned();
    Some(Session { token: token(&stored), id })
}

pub(super) fn read_token(json: &[u8]) -> Option<Token> {
    read(json).map(|stored| token(&stored))
}

/// A token that no header can carry was not written by us.
fn read(json: &[u8]) -> Option<Stored<'_>> {
    let stored: Stored<'_> = serde_json::from_slice(json).ok()?;
    let is_token =
        !stored.t.is_empty() && !stored.t.contains(|c: char| c.is_ascii_control() && c != '\t');
    is_token.then_some(stored)
}

fn write(token: &Token, session: Option<&str>) -> Vec<u8> {
    let end = token.expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stored = Stored {
        t: token.value.expose_secret().into(),
        e: millis(end),
        s: session.map(Into::into),
    };
    // Two strings and a number: nothing in them can fail to serialize.
    serde_json::to_vec(&stored).unwrap_or_default()
}

fn token(stored: &Stored<'_>) -> Token {
    // An end that no date can tell is no end we wrote: it counts as past.
    let end = if stored.e > YEAR_9999 { 0 } else { stored.e };
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_millis(end);
    Token { value: stored.t.clone().into_owned().into(), expires_at }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sessions_read_as_they_were_written(
            value in r"[^\x00-\x08\x0a-\x1f\x7f]{1,99}",
            id in r"(?s).{1,99}",
            end in 0u64..1 << 45,
        ) {
            let expires_at = SystemTime::UNIX_EPOCH + Duration::from_millis(end);
            let token = Token { value: value.clone().into(), expires_at };
            let read = read_token(&write_token(&token)).unwrap();
            prop_assert_eq!((read.value.expose_secret(), read.expires_at), (value.as_str(), expires_at));
            let read = read_session(&write_session(&Session { token, id: id.clone() })).unwrap();
            prop_assert_eq!((read.token.value.expose_secret(), read.id), (value.as_str(), id));
            prop_assert_eq!(read.token.expires_at, expires_at);
        }

        #[test]
        fn whatever_is_stored_its_end_can_be_told(bytes: Vec<u8>, end: u64) {
            let _ = (read_token(&bytes), read_session(&bytes));
            let json = format!(r#"{{"t":"t","e":{end},"s":"s"}}"#);
            let read = read_session(json.as_bytes()).unwrap();
            prop_assert!(crate::message::format_date_time(read.token.expires_at).len() < 30);
        }
    }

    #[test]
    fn a_token_is_no_session_and_rubbish_is_nothing() {
        let token = Token { value: "t".to_owned().into(), expires_at: SystemTime::UNIX_EPOCH };
        assert!(read_session(&write_token(&token)).is_none());
        let no_token = [r#"{"t":"","e":9,"s":"s"}"#, r#"{"t":"t\n","e":9,"s":"s"}"#];
        for rubbish in ["", "{}", "\u{1}xyz", "[]"].into_iter().chain(no_token) {
            let rubbish = rubbish.as_bytes();
            assert!(read_token(rubbish).is_none() && read_session(rubbish).is_none());
        }
        assert!(read_session(br#"{"t":"t","e":9,"s":""}"#).is_none());
    }
}
