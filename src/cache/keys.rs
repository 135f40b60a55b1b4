//! Redis keys and stamps, both of them hashes: Redis never sees a user id or a request id.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{hash, units::unix_millis};

/// Hex digits of a stamp.
const STAMP_LEN: usize = 32;

/// The Redis keys of one user and workflow. All lie in one slot of a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    pub(crate) link: String,
    /// Key of a token that has no session yet.
    pub(crate) token: String,
    /// Key of the lease, whose value is the holder id.
    pub(crate) lease: String,
}

impl Keys {
    /// `prefix:{hash}:kind`. Redis Cluster derives the slot from the part within the braces.
    pub(super) fn new(prefix: &str, user_id: &str, workflow_id: &str) -> Self {
        let hash = BASE64_URL_SAFE_NO_PAD.encode(hash::of_pair(user_id, workflow_id));
        let key = |kind| [prefix, ":{", &hash, "}:", kind].concat();
        Self { link: key("link"), token: key("token"), lease: key("lease") }
    }
}

/// What a stored link remembers of a request: 32 hex digits of the hash of the request id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(String);

impl Stamp {
    pub(crate) fn of(request_id: &str) -> Self {
        Self(hash::hex(&hash::of(request_id)))
    }

    /// The newest of the stamps that Redis returned; empty where there was no link.
    pub(super) fn from_redis(stamps: &[u8]) -> Self {
        let newest = &stamps[..stamps.len().min(STAMP_LEN)];
        Self(String::from_utf8_lossy(newest).into_owned())
    }

    /// The stamp that shows when the session of this request's link was asked for: see `store.lua`.
    pub(super) fn with_age(&self, made_at: SystemTime) -> String {
        format!("{:016x}{}", unix_millis(made_at), self.0.get(..STAMP_LEN / 2).unwrap_or_default())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_a_slot_and_do_not_show_the_user() {
        let keys = Keys::new("handoff", "ann@example.com", "w");
        for (key, kind) in [(&keys.link, ":link"), (&keys.token, ":token"), (&keys.lease, ":lease")]
        {
            assert!(key.starts_with("handoff:{") && key.ends_with(kind), "{key}");
            assert!(!key.contains("ann"), "{key}");
        }
        let slot = |key: &str| key[key.find('{').unwrap()..key.find('}').unwrap()].to_owned();
        assert_eq!(slot(&keys.link), slot(&keys.lease));
        assert_eq!(slot(&keys.link), slot(&keys.token));
    }

    #[test]
    fn moving_the_border_between_user_and_workflow_changes_the_keys() {
        let keys = |user, workflow| Keys::new("p", user, workflow);
        assert_ne!(keys("ab", "c"), keys("a", "bc"));
        assert_ne!(keys("a", "b"), keys("b", "a"));
        assert_eq!(keys("a", "b"), keys("a", "b"));
    }
}
