//! Redis keys and stamps, both of them hashes: Redis never sees a user id, a session id or a request id.

use std::{ops::Deref, sync::Arc, time::SystemTime};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{config::Flow, hash, units::unix_millis};

/// Hex digits of a stamp.
const STAMP_LEN: usize = 32;
/// Bytes of the hash of user and workflow.
pub(super) const HASH_LEN: usize = 32;
/// Bytes of a link id.
const LINK_ID_LEN: usize = 10;

const LINK: &str = "link";
const DEEPLINK: &str = "deeplink";
const TOKEN: &str = "token";
const LEASE: &str = "lease";

/// The Redis keys of one user and workflow. All lie in one slot of a Redis Cluster.
///
/// Cheap to clone: the lease, the link and the calls that may be repeated later all hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Arc<KeySet>);

#[derive(Debug, PartialEq, Eq)]
pub struct KeySet {
    /// The hash of user and workflow.
    pub(super) hash: [u8; HASH_LEN],
    /// Key of the link. Each flow has its own, so that no link of the one is handed out in the other.
    pub(crate) link: String,
    /// Key of what a holder of the lease saves for the next: a token that has no session yet or, in the one-call
    /// flow, how many links each request has had.
    pub(crate) saved: String,
    /// Key of the lease, whose value is the holder id. The flows share it.
    pub(crate) lease: String,
    /// Key of the mark that the end of a verification leaves.
    pub(crate) mark: String,
}

impl Keys {
    /// `prefix:{hash}:kind`. Redis Cluster derives the slot from the part within the braces.
    pub(super) fn new(prefix: &str, flow: Flow, user_id: &str, workflow_id: &str) -> Self {
        let hash = hash::of_pair(user_id, workflow_id);
        // SHA-256 has 32 bytes, so the index stays in range.
        Self::of_hash(prefix, flow, std::array::from_fn(|at| hash.as_ref()[at]))
    }

    pub(super) fn of_hash(prefix: &str, flow: Flow, hash: [u8; HASH_LEN]) -> Self {
        let tag = BASE64_URL_SAFE_NO_PAD.encode(hash);
        let key = |kind| [prefix, ":{", &tag, "}:", kind].concat();
        let (link, saved) = match flow {
            Flow::Token => (LINK, TOKEN),
            Flow::Deeplink => (DEEPLINK, "links"),
        };
        let (link, saved, lease, mark) = (key(link), key(saved), key(LEASE), key("ended"));
        Self(Arc::new(KeySet { hash, link, saved, lease, mark }))
    }

    /// The links of both flows.
    pub(super) fn links(&self) -> [String; 2] {
        [self.of_kind(LINK), self.of_kind(DEEPLINK)]
    }

    /// The token that has no session yet.
    pub(super) fn token(&self) -> String {
        self.of_kind(TOKEN)
    }

    fn of_kind(&self, kind: &str) -> String {
        [self.lease.strip_suffix(LEASE).unwrap_or_default(), kind].concat()
    }
}

impl Deref for Keys {
    type Target = KeySet;

    fn deref(&self) -> &KeySet {
        &self.0
    }
}

/// The key of a session's index entry, in a slot of its own.
pub(super) fn session_key(prefix: &str, session_id: &str) -> String {
    let hash = hash::of(session_id);
    // Half of it is enough to avoid collisions, and saves memory.
    let hash = BASE64_URL_SAFE_NO_PAD.encode(&hash.as_ref()[..HASH_LEN / 2]);
    [prefix, ":{", &hash, "}:s"].concat()
}

/// Distinguishes a stored link from those before and after it under the same key: see `forget_link.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkId([u8; LINK_ID_LEN]);

impl LinkId {
    /// `stamp` is that of the request that the link was made for.
    pub(crate) fn new(stamp: &Stamp, made_at: SystemTime) -> Self {
        Self::of(stamp, unix_millis(made_at))
    }

    /// Of a stored link, by its stamps. One of release 0.1 has no age stamp: its time is 0.
    pub(super) fn of_stored(stamps: &[u8]) -> Self {
        // The first digit says whether there is an index entry.
        let digits = own_age(stamps).and_then(|age| std::str::from_utf8(&age[1..]).ok());
        let made_at_ms = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Self::of(&Stamp::from_redis(stamps), made_at_ms.unwrap_or(0))
    }

    fn of(stamp: &Stamp, made_at_ms: u64) -> Self {
        let [_, _, time @ ..] = made_at_ms.to_be_bytes();
        let stamp = stamp.0.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let mut id = [0; LINK_ID_LEN];
        id[..6].copy_from_slice(&time);
        id[6..].copy_from_slice(&stamp.unwrap_or_default().to_be_bytes());
        Self(id)
    }

    /// As the scripts write it.
    pub(super) fn to_hex(self) -> String {
        let mut number = [0; 16];
        number[16 - LINK_ID_LEN..].copy_from_slice(&self.0);
        let hex = format!("{:020x}", u128::from_be_bytes(number));
        // 48 bits hold the time until the year 10889; 44 bits, until 2527.
        hex[1..].to_owned()
    }
}

/// The index entry of a session: where its link is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) hash: [u8; HASH_LEN],
    pub(super) link: LinkId,
}

impl IndexEntry {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [b"i", &self.hash[..], &self.link.0].concat()
    }

    /// Reads an entry without its first byte. `None` if it is no entry.
    pub(super) fn parse(entry: &[u8]) -> Option<Self> {
        let (hash, link) = entry.split_first_chunk()?;
        Some(Self { hash: *hash, link: LinkId(link.try_into().ok()?) })
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

    /// The stamp that shows when the session of this request's link was asked for, and whether the session has an
    /// index entry: see `store.lua`.
    pub(super) fn with_age(&self, made_at: SystemTime, is_indexed: bool) -> String {
        let of = self.0.get(..STAMP_LEN / 2).unwrap_or_default();
        format!("{}{:015x}{of}", u8::from(is_indexed), unix_millis(made_at))
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

/// The first half of a stored link's age stamp, by its stamps: see `store.lua`. `None` for a link of release 0.1,
/// which may have kept that of an earlier link, behind the stamps of renewals.
pub(super) fn own_age(stamps: &[u8]) -> Option<&[u8]> {
    let newest = stamps.get(..STAMP_LEN / 2)?;
    let mut later = stamps.split(|byte| *byte == b',').skip(1);
    later.find_map(|stamp| {
        let (age, of) = stamp.split_at_checked(STAMP_LEN / 2)?;
        (of == newest).then_some(age)
    })
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
            (&two_calls.mark, ":ended"),
            (&one_call.mark, ":ended"),
            (&one_call.links()[0], ":link"),
            (&two_calls.links()[1], ":deeplink"),
            (&one_call.token(), ":token"),
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
    fn index_entry_leads_back_to_the_keys_and_the_link() {
        // A prefix may contain what separates its parts.
        for prefix in ["handoff", "a:{b}:c"] {
            let keys = Keys::new(prefix, Flow::Token, "ann", "w");
            let made_at =
                SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(0x19a_bcde_f012);
            let link = LinkId::new(&Stamp::of("request"), made_at);
            let entry = IndexEntry { hash: keys.hash, link };
            let read = IndexEntry::parse(&entry.to_bytes()[1..]).unwrap();
            assert_eq!(read, entry);
            assert_eq!(Keys::of_hash(prefix, Flow::Token, read.hash), keys);
            assert_eq!(link.to_hex(), format!("19abcdef012{}", &Stamp::of("request").0[..8]));
        }
        assert_eq!(IndexEntry::parse(b""), None);
        assert_eq!(IndexEntry::parse(&[0; HASH_LEN]), None);
        assert_eq!(IndexEntry::parse(&[0; 99]), None);
    }

    #[test]
    fn moving_the_border_between_user_and_workflow_changes_the_keys() {
        let keys = |user, workflow| Keys::new("p", Flow::Token, user, workflow);
        assert_ne!(keys("ab", "c"), keys("a", "bc"));
        assert_ne!(keys("a", "b"), keys("b", "a"));
        assert_eq!(keys("a", "b"), keys("a", "b"));
    }
}
