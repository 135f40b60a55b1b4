//! Where things are kept: one hash per user and workflow, and no user id in sight.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::hash;

/// The Redis keys of one user and workflow. All lie in one slot of a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Holds the link.
    pub link: String,
    /// Holds a token that has no session yet.
    pub token: String,
    /// Held by whoever is making the session.
    pub lease: String,
}

impl Keys {
    /// `prefix:{hash}:what`. The braces are Redis Cluster's: they name what decides on the slot.
    pub(super) fn new(prefix: &str, user_id: &str, workflow_id: &str) -> Self {
        let hash = BASE64_URL_SAFE_NO_PAD.encode(hash::of_pair(user_id, workflow_id));
        let key = |what| [prefix, ":{", &hash, "}:", what].concat();
        Self { link: key("link"), token: key("token"), lease: key("lease") }
    }
}

/// What a link remembers of the request it was made for: 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(String);

impl Stamp {
    /// The stamp of the request with this id.
    pub fn of(request_id: &str) -> Self {
        Self(hash::hex(&hash::of(request_id)))
    }

    /// The first of the stamps that Redis gave; empty where there was no link.
    pub(super) fn from_redis(stamps: &[u8]) -> Self {
        let newest = &stamps[..stamps.len().min(32)];
        Self(String::from_utf8_lossy(newest).into_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_a_slot_and_tell_nobody() {
        let keys = Keys::new("handoff", "ann@example.com", "w");
        for (key, what) in [(&keys.link, ":link"), (&keys.token, ":token"), (&keys.lease, ":lease")]
        {
            assert!(key.starts_with("handoff:{") && key.ends_with(what), "{key}");
            assert!(!key.contains("ann"), "{key}");
        }
        let slot = |key: &str| key[key.find('{').unwrap()..key.find('}').unwrap()].to_owned();
        assert_eq!(slot(&keys.link), slot(&keys.lease));
        assert_eq!(slot(&keys.link), slot(&keys.token));
    }

    #[test]
    fn user_and_workflow_cannot_run_into_each_other() {
        let keys = |user, workflow| Keys::new("p", user, workflow);
        assert_ne!(keys("ab", "c"), keys("a", "bc"));
        assert_ne!(keys("a", "b"), keys("b", "a"));
        assert_eq!(keys("a", "b"), keys("a", "b"));
    }
}
