//! The Lua scripts, which Redis runs atomically.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{RedisResult, Script, ScriptInvocation, aio::ConnectionLike, pipe};

use super::keys::{Keys, Stamp};
use crate::units::millis;

/// Limit of one script. A request runs two in sequence, so an unresponsive Redis costs it at most half a
/// second. The unit tests do not test the limit, and must not fail on a slow machine.
pub(super) const SCRIPT_TIMEOUT: Duration =
    Duration::from_millis(if cfg!(test) { 10_000 } else { 250 });

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!($file)));)*
        const SOURCES: &[&str] = &[$(include_str!($file)),*];
    };
}

scripts! {
    CLAIM = "claim.lua";
    STORE = "store.lua";
    SAVE_TOKEN = "save_token.lua";
    ADD_STAMP = "add_stamp.lua";
    EXTEND = "extend.lua";
    RELEASE = "release.lua";
    TAKE_CALLS = "take_calls.lua";
}

/// Milliseconds from now until `end`; zero once it has passed.
pub(super) fn remaining_ms(end: SystemTime) -> u64 {
    millis(end.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Ends a lease that this holder still has.
pub(super) fn release(keys: &Keys, holder: &str, drop_token: bool) -> ScriptInvocation<'static> {
    let mut script = RELEASE.key(&keys.saved);
    script.key(&keys.lease).arg(holder).arg(u8::from(drop_token));
    script
}

/// Loads all scripts into Redis in one round trip, so that each runs by its hash in one round trip.
pub(super) async fn load(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    let mut load = pipe();
    for source in SOURCES {
        load.cmd("SCRIPT").arg("LOAD").arg(*source).ignore();
    }
    load.query_async(connection).await
}

/// The reply of `claim.lua`.
pub(super) enum ClaimReply<'a> {
    Link { stamps: &'a [u8], value: &'a [u8] },
    Lease { newest: Stamp, saved: &'a [u8] },
    LeaseTaken { newest: Stamp },
}

impl<'a> ClaimReply<'a> {
    /// `None` if the script cannot have returned this.
    pub(super) fn parse(reply: &'a [u8]) -> Option<Self> {
        // Stamps are hexadecimal, so a link starts with neither "lease" nor "held".
        Some(match split_at_bar(reply)? {
            (b"lease", rest) => {
                let (newest, saved) = split_at_bar(rest)?;
                Self::Lease { newest: Stamp::from_redis(newest), saved }
            }
            (b"held", newest) => Self::LeaseTaken { newest: Stamp::from_redis(newest) },
            (stamps, value) => Self::Link { stamps, value },
        })
    }
}

/// Splits at the first `|`.
fn split_at_bar(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let bar = text.iter().position(|byte| *byte == b'|')?;
    Some((&text[..bar], &text[bar + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_replies_are_parsed_and_anything_else_is_rejected() {
        let stamp = |text: &[u8]| Stamp::from_redis(text);
        assert!(matches!(
            ClaimReply::parse(b"ab12,cd|v|w"),
            Some(ClaimReply::Link { stamps: b"ab12,cd", value: b"v|w" })
        ));
        assert!(matches!(
            ClaimReply::parse(b"lease|ab|t|u"),
            Some(ClaimReply::Lease { newest, saved: b"t|u" }) if newest == stamp(b"ab")
        ));
        assert!(matches!(
            ClaimReply::parse(b"lease||"),
            Some(ClaimReply::Lease { newest, saved: b"" }) if newest == stamp(b"")
        ));
        assert!(matches!(
            ClaimReply::parse(b"held|ab"),
            Some(ClaimReply::LeaseTaken { newest }) if newest == stamp(b"ab")
        ));
        for other in [&b""[..], b"OK", b"lease", b"lease|ab", b"held"] {
            assert!(ClaimReply::parse(other).is_none());
        }
    }
}
