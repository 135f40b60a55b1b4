//! The steps that must not be interrupted, as scripts that Redis runs whole.

use std::{sync::LazyLock, time::SystemTime};

use deadpool_redis::redis::{RedisResult, Script, ScriptInvocation, aio::ConnectionLike};

use super::{Keys, Stamp, left};

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!($file)));
    };
}

script!(CLAIM, "claim.lua");
script!(STORE, "store.lua");
script!(SAVE_TOKEN, "save_token.lua");
script!(ADD_STAMP, "add_stamp.lua");
script!(EXTEND, "extend.lua");
script!(RELEASE, "release.lua");
script!(TAKE_CALLS, "take_calls.lua");

/// Stores a link that may be handed out until then, over those that `store.lua` says.
pub(super) fn store(
    keys: &Keys,
    holder: &str,
    over: &str,
    stamp: &Stamp,
    until: SystemTime,
    value: &[u8],
) -> ScriptInvocation<'static> {
    let mut script = STORE.key(&keys.link);
    script.key(&keys.token).key(&keys.lease);
    script.arg(holder).arg(over).arg(stamp.as_str()).arg(left(until)).arg(value);
    script
}

/// Ends a lease, if it is still this holder's.
pub(super) fn release(keys: &Keys, holder: &str, drop_token: bool) -> ScriptInvocation<'static> {
    let mut script = RELEASE.key(&keys.token);
    script.key(&keys.lease).arg(holder).arg(u8::from(drop_token));
    script
}

/// Teaches Redis all scripts, so that calling one by its hash finds it there.
pub(super) async fn load(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    for script in [&CLAIM, &STORE, &SAVE_TOKEN, &ADD_STAMP, &EXTEND, &RELEASE, &TAKE_CALLS] {
        script.load_async(connection).await?;
    }
    Ok(())
}

/// What `claim.lua` says.
pub(super) enum Claimed<'a> {
    Link { stamps: &'a [u8], value: &'a [u8] },
    Lease { newest: Stamp, token: &'a [u8] },
    Held { newest: Stamp },
}

impl<'a> Claimed<'a> {
    /// `None` where that is not what the script says.
    pub(super) fn read(said: &'a [u8]) -> Option<Self> {
        // Stamps are hexadecimal, so no link begins like the other two.
        Some(match halves(said)? {
            (b"lease", rest) => {
                let (newest, token) = halves(rest)?;
                Self::Lease { newest: Stamp::from_redis(newest), token }
            }
            (b"held", newest) => Self::Held { newest: Stamp::from_redis(newest) },
            (stamps, value) => Self::Link { stamps, value },
        })
    }
}

/// What is before and after the first `|`.
fn halves(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let bar = text.iter().position(|byte| *byte == b'|')?;
    Some((&text[..bar], &text[bar + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_says_is_told_from_what_it_never_says() {
        let stamp = |text: &[u8]| Stamp::from_redis(text);
        assert!(matches!(
            Claimed::read(b"ab12,cd|v|w"),
            Some(Claimed::Link { stamps: b"ab12,cd", value: b"v|w" })
        ));
        assert!(matches!(
            Claimed::read(b"lease|ab|t|u"),
            Some(Claimed::Lease { newest, token: b"t|u" }) if newest == stamp(b"ab")
        ));
        assert!(matches!(
            Claimed::read(b"lease||"),
            Some(Claimed::Lease { newest, token: b"" }) if newest == stamp(b"")
        ));
        assert!(matches!(
            Claimed::read(b"held|ab"),
            Some(Claimed::Held { newest }) if newest == stamp(b"ab")
        ));
        for other in [&b""[..], b"OK", b"lease", b"lease|ab", b"held"] {
            assert!(Claimed::read(other).is_none());
        }
    }
}
