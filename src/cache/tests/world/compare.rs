//! Compares what Redis holds with the model.

use std::time::Duration;

use deadpool_redis::redis;
use secrecy::ExposeSecret;

use super::World;
use crate::cache::test_redis::LINK_MIN_LIFE;

/// Three values, each with its TTL in milliseconds.
type Stored = (Option<Vec<u8>>, i64, Option<Vec<u8>>, i64, Option<Vec<u8>>, i64);

impl World {
    /// Asserts that Redis holds for a person what the model says, and that all of it expires.
    pub(super) async fn compare(&mut self, person: usize) {
        let keys = self.keys(person);
        let mut read = redis::pipe();
        for key in [&keys.link, &keys.saved, &keys.lease] {
            read.cmd("GET").arg(key).cmd("PTTL").arg(key);
        }
        let stored: Stored = read.query_async(&mut self.redis.connection).await.unwrap();
        let (stored_link, link_ttl_ms, stored_token, token_ttl_ms, stored_lease, lease_ttl_ms) =
            stored;
        let model = &self.people[person];
        let lease_ttl = self.workers[0].cache.lease_ttl();
        let seal = &self.workers[0].cache.0.seal;
        let lifetimes = self.workers[0].cache.lifetimes();
        let expires =
            |ttl_ms: i64, limit: Duration| 0 < ttl_ms && ttl_ms <= limit.as_millis() as i64;

        let expected = model.link.as_ref().map(|link| {
            let stamps = link.made_for.iter().map(|request| self.stamp(person, *request));
            let mut stamps: Vec<_> = stamps.map(|stamp| stamp.as_str().to_owned()).collect();
            let newest = self.stamp(person, link.made_for[0]);
            stamps.insert(1, newest.with_age(self.made_at(link.session), link.is_indexed));
            (stamps.join(","), self.session_id(person, link.session))
        });
        let found = stored_link.map(|stored| {
            let bar = stored.iter().position(|byte| *byte == b'|').unwrap();
            let session = seal.open_session(&keys.link, &stored[bar + 1..], lifetimes).unwrap();
            (String::from_utf8(stored[..bar].to_vec()).unwrap(), session.id)
        });
        assert_eq!(found, expected, "the link of {person}");
        assert!(found.is_none() || expires(link_ttl_ms, 5 * LINK_MIN_LIFE), "{link_ttl_ms} ms");

        let found = stored_token.map(|stored| seal.open_token(&keys.saved, &stored).unwrap());
        let found = found.map(|token| token.value.expose_secret().to_owned());
        assert!(found.is_none() || expires(token_ttl_ms, 5 * LINK_MIN_LIFE), "{token_ttl_ms} ms");
        let expected = model.token.map(|token| self.token_text(person, token));
        assert_eq!(found, expected, "the token of {person}");

        let holder_id = stored_lease.map(|id| String::from_utf8(id).unwrap());
        assert_eq!(holder_id.is_some(), model.lease.is_some(), "the lease of {person}");
        assert!(holder_id.is_none() || expires(lease_ttl_ms, lease_ttl), "{lease_ttl_ms} ms");
        if let (Some(claim), Some(holder_id)) = (model.lease, holder_id) {
            let mut others = self.holder_ids.iter().filter(|(other, _)| **other != claim);
            assert!(!others.any(|(_, id)| *id == holder_id), "another claim's holder id");
            assert_eq!(*self.holder_ids.entry(claim).or_insert(holder_id.clone()), holder_id);
        }
    }
}
