//! The Lua scripts, which Redis runs atomically.

mod call;

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{RedisResult, aio::ConnectionLike, pipe};

pub(super) use self::call::ScriptCall;
use self::call::StaticScript;
use super::keys::{Keys, Stamp, own_age};
use crate::units::millis;

/// Limit of one script. A request runs two in sequence, so an unresponsive Redis costs it at most half a
/// second. The unit tests do not test the limit, and must not fail on a slow machine.
pub(super) const SCRIPT_TIMEOUT: Duration =
    Duration::from_millis(if cfg!(test) { 10_000 } else { 250 });

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(super) static $name: LazyLock<StaticScript> =
            LazyLock::new(|| StaticScript::new(include_str!($file)));)*
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
    INDEX = "index.lua";
    INDEXED = "indexed.lua";
    FORGET = "forget.lua";
    FORGET_LINK = "forget_link.lua";
    END_SESSION = "end_session.lua";
    STORED = "stored.lua";
    TAKE_CALLS = "take_calls.lua";
    TAKE_PROBE = "take_probe.lua";
    PLATFORM_ANSWERED = "platform_answered.lua";
}

/// Milliseconds from now until `end`; zero once it has passed.
pub(super) fn remaining_ms(end: SystemTime) -> u64 {
    millis(end.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The TTL of a mark that is there until `end`, in milliseconds: Redis takes no zero.
pub(super) fn mark_ms(end: SystemTime) -> u64 {
    remaining_ms(end).max(1)
}

/// Ends a lease that this holder still has.
pub(super) fn release(keys: &Keys, holder: &str, drop_token: bool) -> ScriptCall {
    let mut script = RELEASE.call([&keys.saved, &keys.lease]);
    script.arg(holder).arg(u8::from(drop_token));
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
    Lease { newest: Stamp, mark: &'a [u8], saved: &'a [u8] },
    LeaseTaken { newest: Stamp },
}

impl<'a> ClaimReply<'a> {
    /// Whether a link, whose stamps these are, says that its session has an index entry. A link of release 0.1
    /// never does, and needs none.
    pub(super) fn is_indexed(stamps: &[u8]) -> bool {
        own_age(stamps).is_none_or(|age| age.first() == Some(&b'1'))
    }

    /// `None` if the script cannot have returned this.
    pub(super) fn parse(reply: &'a [u8]) -> Option<Self> {
        // Stamps are hexadecimal, so a link starts with neither "lease" nor "held".
        Some(match split_at_bar(reply)? {
            (b"lease", rest) => {
                let (newest, rest) = split_at_bar(rest)?;
                let (mark, saved) = split_at_bar(rest)?;
                Self::Lease { newest: Stamp::from_redis(newest), mark, saved }
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
    fn age_stamp_of_the_link_itself_says_whether_there_is_an_index_entry() {
        let own = format!("{:032x}", 7_u128 << 64);
        let age = |flag, of: &str| format!("{flag}{:015x}{}", 9, &of[..16]);
        let other = format!("{:032x}", 8_u128 << 64);
        for (stamps, expected) in [
            (format!("{own},{}", age(0, &own)), false),
            (format!("{own},{}", age(1, &own)), true),
            (format!("{own},{},{other}", age(0, &own)), false),
            (format!("{own},{other},{}", age(0, &own)), false),
            (format!("{own},{other},{}", age(1, &own)), true),
            // Left behind by release 0.1.
            (format!("{own},{}", age(0, &other)), true),
            (format!("{own},{other}"), true),
            (own.clone(), true),
            (String::new(), true),
        ] {
            assert_eq!(ClaimReply::is_indexed(stamps.as_bytes()), expected, "{stamps}");
        }
    }

    #[test]
    fn claim_replies_are_parsed_and_anything_else_is_rejected() {
        let stamp = |text: &[u8]| Stamp::from_redis(text);
        assert!(matches!(
            ClaimReply::parse(b"ab12,cd|v|w"),
            Some(ClaimReply::Link { stamps: b"ab12,cd", value: b"v|w" })
        ));
        assert!(matches!(
            ClaimReply::parse(b"lease|ab|1:2|t|u"),
            Some(ClaimReply::Lease { newest, mark: b"1:2", saved: b"t|u" }) if newest == stamp(b"ab")
        ));
        assert!(matches!(
            ClaimReply::parse(b"lease|||"),
            Some(ClaimReply::Lease { newest, mark: b"", saved: b"" }) if newest == stamp(b"")
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
