//! The scripts that write links, index entries and marks, each with all it needs to run late or again.

use std::time::{Duration, SystemTime};

use super::{
    keys::{HASH_LEN, IndexEntry, Keys, LinkId, Stamp},
    scripts::{self, ScriptCall},
};
use crate::units::millis;

/// How long Redis remembers how many links a request has had. Platforms that honour an `Idempotency-Key` usually
/// do so for a day.
const LINKS_COUNTED: Duration = Duration::from_secs(24 * 3_600);

/// When a link is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timing {
    /// As soon as its session is made. The end of an earlier verification does not affect it under a live lease.
    AtOnce,
    /// Later. It may have been handed out, and its verification may have ended.
    Late,
}

/// A script that writes: once Redis is available, or again, because a fail-over may have lost it.
pub(super) enum Write {
    Link(StoreCall),
    Index(IndexCall),
    Ending(ForgetCall),
}

impl Write {
    /// The script, as it runs late.
    pub(super) fn script(&self) -> ScriptCall {
        match self {
            Self::Link(call) => call.script(Timing::Late, None),
            Self::Index(call) => call.script(),
            Self::Ending(call) => call.script(),
        }
    }

    /// A key of its script; all of them are on the same server.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Link(call) => &call.keys.link,
            Self::Index(call) => &call.key,
            Self::Ending(call) => call.key(),
        }
    }

    /// When the script has lost its purpose.
    pub(super) fn until(&self) -> SystemTime {
        match self {
            Self::Link(call) => call.until,
            Self::Index(call) => call.until,
            Self::Ending(call) => call.until(),
        }
    }
}

/// A call of `store.lua`.
pub(super) struct StoreCall {
    pub(super) keys: Keys,
    pub(super) holder: String,
    pub(super) overwrite: String,
    pub(super) stamp: Stamp,
    /// When the session was asked for.
    pub(super) made_at: SystemTime,
    /// How many links the request has had, this one included; 0 in the two-call flow, which does not count them.
    pub(super) links: u32,
    /// When the link is no longer handed out.
    pub(super) until: SystemTime,
    /// The sealed link.
    pub(super) value: Vec<u8>,
    /// The mark of the last ending that cannot concern the session.
    pub(super) mark: Vec<u8>,
}

impl StoreCall {
    /// The TTL that it sets shrinks until it runs.
    ///
    /// `entry`: the session's index entry, if the server takes both keys in one script.
    pub(super) fn script(&self, timing: Timing, entry: Option<&IndexCall>) -> ScriptCall {
        let Self { keys, stamp, links, mark, .. } = self;
        let own = [&*keys.link, &keys.saved, &keys.lease, &keys.mark];
        let mut script = match entry {
            None => scripts::STORE.call(own),
            Some(entry) => {
                let [link, saved, lease, mark] = own;
                scripts::STORE.call([link, saved, lease, mark, &entry.key])
            }
        };
        let age = stamp.with_age(self.made_at, entry.is_some());
        let link = [stamp.as_str().as_bytes(), b",", age.as_bytes(), b"|", &self.value].concat();
        script.arg(&self.holder).arg(link).arg(scripts::remaining_ms(self.until));
        // Redis spends 0.3 µs on each argument: those that usually have their defaults are left out then.
        let is_new = self.overwrite.is_empty() && mark.is_empty();
        if timing == Timing::Late || *links > 0 || !is_new {
            script.arg(&self.overwrite).arg(&mark[..]);
            script.arg(if timing == Timing::Late { "late" } else { "" });
            script.arg(*links).arg(millis(LINKS_COUNTED));
        }
        if let Some(entry) = entry {
            script.arg(entry.entry());
        }
        script
    }
}

/// A call of `index.lua`.
pub(super) struct IndexCall {
    /// The session's key.
    pub(super) key: String,
    /// Of the link.
    pub(super) keys: Keys,
    pub(super) link: LinkId,
    /// When the link is no longer handed out.
    pub(super) until: SystemTime,
}

impl IndexCall {
    /// Returns 1 if the session has ended.
    pub(super) fn script(&self) -> ScriptCall {
        let mut script = scripts::INDEX.call([&self.key]);
        script.arg(self.entry()).arg(scripts::remaining_ms(self.until));
        script
    }

    fn entry(&self) -> Vec<u8> {
        IndexEntry { hash: self.keys.hash, link: self.link }.to_bytes()
    }

    /// Forgets the link, whose session has ended.
    pub(super) fn forget(&self) -> ForgetCall {
        ForgetCall::Link { keys: self.keys.clone(), link: self.link, until: self.until }
    }
}

/// A script that forgets links, or marks what has ended.
pub(super) enum ForgetCall {
    /// The verification of a user and workflow has ended at this second since 1970.
    User {
        keys: Keys,
        ended: u64,
        link_life_ms: u64,
        until: SystemTime,
    },
    /// A session has ended; with a hash, only if it is that of this user and workflow.
    Session {
        key: String,
        hash: Option<[u8; HASH_LEN]>,
        until: SystemTime,
    },
    Link {
        keys: Keys,
        link: LinkId,
        until: SystemTime,
    },
}

impl ForgetCall {
    pub(super) fn script(&self) -> ScriptCall {
        match self {
            Self::User { keys, ended, link_life_ms, until } => {
                let [link, other_link] = keys.links();
                let keys = [&keys.mark, &*keys.token(), &keys.lease, &link, &other_link];
                let mut script = scripts::FORGET.call(keys);
                script.arg(*ended).arg(scripts::mark_ms(*until)).arg(*link_life_ms);
                script
            }
            Self::Session { key, hash, until } => {
                let mut script = scripts::END_SESSION.call([key]);
                let hash = hash.as_ref().map_or(&[][..], |hash| &hash[..]);
                script.arg(scripts::mark_ms(*until)).arg(hash);
                script
            }
            Self::Link { keys, link, .. } => {
                let [first, second] = keys.links();
                let keys = [&*keys.token(), &keys.lease, &first, &second];
                let mut script = scripts::FORGET_LINK.call(keys);
                script.arg(link.to_hex());
                script
            }
        }
    }

    /// A key of the script; all of them are on the same server.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::User { keys, .. } | Self::Link { keys, .. } => &keys.link,
            Self::Session { key, .. } => key,
        }
    }

    /// When the mark has no purpose any more.
    pub(super) fn until(&self) -> SystemTime {
        match self {
            Self::User { until, .. } | Self::Session { until, .. } | Self::Link { until, .. } => {
                *until
            }
        }
    }
}
