//! Redis keys and stamps, both of them hashes: Redis never sees a user id or a request id.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{config::Flow, hash, units::unix_millis};

/// Hex digits of a stamp.
const STAMP_LEN: usize = 32;

/// The Redis keys of one user and workflow. All lie in one slot of a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    /// Key of the link. Each flow has its own, so that no link of the one is handed out in the other.
    pub(crate) link: String,
    /// Key of what a holder of the lease saves for the next: a token that has no session yet or, in the one-call
    /// flow, how many links each request has had.
    pub(crate) saved: String,
    /// Key of the lease, whose value is the holder id. The flows share it.
    pub(crate) lease: String,
}

impl Keys {
    /// `prefix:{hash}:kind`. Redis Cluster derives the slot from the part within the braces.
    pub(super) fn new(prefix: &str, flow: Flow, user_id: &str, workflow_id: &str) -> Self {
        let hash = BASE64_URL_SAFE_NO_PAD.encode(hash::of_pair(user_id, workflow_id));
        let key = |kind| [prefix, ":{", &hash, "}:", kind].concat();
        let (link, saved) = match flow {
            Flow::Token => ("link", "token"),
            Flow::Deeplink => ("deeplink", "links"),
        };
        Self { link: key(link), saved: key(saved), lease: key("lease") }
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

    /// How many links the request behind this stamp has had, from what is saved in the one-call flow:
    /// `<stamp>=<n>,…` (`store.lua`).
    pub(super) fn links(&self, saved: &[u8]) -> u32 {
        let saved = std::str::from_utf8(saved).unwrap_or_default();
        let mut counts = saved.split(',').filter_map(|count| count.split_once('='));
        let own = counts.find(|(stamp, _)| *stamp == self.0);
        own.and_then(|(_, links)| links.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_a_slot_and_do_not_show_the_user() {
        let keys = |flow| Keys::new("handoff", flow, "ann@example.com", "w");
        let two_calls = keys(Flow::Token);
        let one_call = keys(Flow::Deeplink);
        let slot = |key: &str| key[key.find('{').unwrap()..key.find('}').unwrap()].to_owned();
        for (key, kind) in [
            (&two_calls.link, ":link"),
            (&two_calls.saved, ":token"),
            (&two_calls.lease, ":lease"),
            (&one_call.link, ":deeplink"),
            (&one_call.saved, ":links"),
            (&one_call.lease, ":lease"),
        ] {
            assert!(key.starts_with("handoff:{") && key.ends_with(kind), "{key}");
            assert!(!key.contains("ann"), "{key}");
            assert_eq!(slot(key), slot(&two_calls.lease));
        }
    }

    #[test]
    fn links_are_counted_by_request() {
        let stamp = |id: &str| Stamp::of(id);
        let (a, b) = (stamp("a"), stamp("b"));
        let saved = format!("{}=12,{}=1", a.as_str(), b.as_str());
        let links = |stamp: &Stamp, saved: &str| stamp.links(saved.as_bytes());
        assert_eq!((links(&a, &saved), links(&b, &saved), links(&stamp("c"), &saved)), (12, 1, 0));
        for damaged in ["", "=", ",", &saved[1..], &format!("{}=x", b.as_str())] {
            assert_eq!(links(&a, damaged), 0, "{damaged}");
        }
        assert_eq!(a.links(b"\xff"), 0);
    }

    #[test]
    fn moving_the_border_between_user_and_workflow_changes_the_keys() {
        let keys = |user, workflow| Keys::new("p", Flow::Token, user, workflow);
        assert_ne!(keys("ab", "c"), keys("a", "bc"));
        assert_ne!(keys("a", "b"), keys("b", "a"));
        assert_eq!(keys("a", "b"), keys("a", "b"));
    }
}
