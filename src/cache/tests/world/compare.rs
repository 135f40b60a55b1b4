//! What Redis holds, and what it should hold.

use std::time::Duration;

use deadpool_redis::redis;
use secrecy::ExposeSecret;

use super::{LINK_MIN_LIFE, World};
use crate::cache::{Keys, LEASE, value};

impl World {
    /// What Redis holds for a person is what the model says, and all of it ends.
    pub(super) async fn compare(&mut self, person: usize) {
        let Keys { link, token, lease } = self.keys(person);
        let mut ask = redis::pipe();
        for key in [&link, &token, &lease] {
            ask.cmd("GET").arg(key).cmd("PTTL").arg(key);
        }
        type Kept = (Option<Vec<u8>>, i64);
        let (at_link, at_token, at_lease): (Kept, Kept, Kept) = {
            let (a, b, c, d, e, f) = ask.query_async(&mut self.redis).await.unwrap();
            ((a, b), (c, d), (e, f))
        };
        let (cache, model) = (&self.workers[0].cache, &self.people[person]);
        let open = |key: &str, sealed: &[u8]| cache.0.seal.open(key, sealed).unwrap();
        let lives = |left: i64, longest: Duration| 0 < left && left <= longest.as_millis() as i64;

        let expected = model.link.as_ref().map(|link| {
            let stamps = link.made_for.iter().map(|request| self.stamp(person, *request));
            let stamps: Vec<_> = stamps.map(|stamp| stamp.as_str().to_owned()).collect();
            (stamps.join(","), self.session_id(person, link.session))
        });
        let found = at_link.0.map(|kept| {
            let bar = kept.iter().position(|byte| *byte == b'|').unwrap();
            let session = value::read_session(&open(&link, &kept[bar + 1..])).unwrap();
            (String::from_utf8(kept[..bar].to_vec()).unwrap(), session.id)
        });
        assert_eq!(found, expected, "the link of {person}");
        assert!(found.is_none() || lives(at_link.1, 5 * LINK_MIN_LIFE), "{} ms", at_link.1);

        let found = at_token.0.map(|kept| value::read_token(&open(&token, &kept)).unwrap());
        let found = found.map(|token| token.value.expose_secret().to_owned());
        assert!(found.is_none() || lives(at_token.1, 5 * LINK_MIN_LIFE), "{} ms", at_token.1);
        assert_eq!(found, model.token.map(|token| self.token_text(person, token)), "the token");

        let holder = at_lease.0.map(|holder| String::from_utf8(holder).unwrap());
        assert_eq!(holder.is_some(), model.lease.is_some(), "the lease of {person}");
        assert!(holder.is_none() || lives(at_lease.1, LEASE), "{} ms", at_lease.1);
        if let (Some(claim), Some(holder)) = (model.lease, holder) {
            let others = self.holders.iter().filter(|(other, _)| **other != claim);
            assert!(!others.map(|(_, name)| name).any(|name| *name == holder), "somebody else's");
            assert_eq!(*self.holders.entry(claim).or_insert(holder.clone()), holder);
        }
    }
}
