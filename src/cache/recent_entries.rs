//! Which index entries this replica has written lately.

use std::time::Duration;

use tokio::time::Instant;

use super::keys::{Keys, LinkId};

/// Most entries remembered. Each has one place, so a newer entry may displace another: then that one is written once
/// more.
const PLACES: usize = 1_024;
/// For how long an entry counts as present. Redis may evict it before.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The index entries that this replica has written in the last minute.
///
/// Each reuse of a link writes its session's entry again, in case it was lost. Someone who asks again and again, or a
/// client that repeats, would otherwise cost Redis a second script for each request.
#[derive(Default)]
pub(super) struct RecentEntries(Box<[Option<Entry>]>);

struct Entry {
    user: u64,
    link: LinkId,
    at: Instant,
}

impl RecentEntries {
    pub(super) fn insert(&mut self, keys: &Keys, link: LinkId) {
        if self.0.is_empty() {
            self.0 = std::iter::repeat_with(|| None).take(PLACES).collect();
        }
        let (user, place) = self.place(keys);
        if let Some(place) = self.0.get_mut(place) {
            *place = Some(Entry { user, link, at: Instant::now() });
        }
    }

    pub(super) fn contains(&self, keys: &Keys, link: LinkId) -> bool {
        let (user, place) = self.place(keys);
        self.0.get(place).and_then(Option::as_ref).is_some_and(|entry| {
            (entry.user, entry.link) == (user, link) && entry.at.elapsed() < REMEMBERED
        })
    }

    /// Forgets all, since Redis may have lost them.
    pub(super) fn clear(&mut self) {
        self.0 = Box::default();
    }

    /// What identifies the user and workflow, and their place.
    fn place(&self, keys: &Keys) -> (u64, usize) {
        let user = keys.hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        (user, (user % PLACES as u64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{cache::Stamp, config::Flow};

    #[tokio::test(start_paused = true)]
    async fn entries_are_remembered_for_a_minute_until_redis_may_have_lost_them() {
        let keys = |user: &str| Keys::new("p", Flow::Token, user, "w");
        let link = |request: &str| LinkId::new(&Stamp::of(request), SystemTime::UNIX_EPOCH);
        let mut entries = RecentEntries::default();
        assert!(!entries.contains(&keys("ann"), link("r1")));
        entries.insert(&keys("ann"), link("r1"));
        assert!(entries.contains(&keys("ann"), link("r1")));
        assert!(!entries.contains(&keys("ann"), link("r2")));
        assert!(!entries.contains(&keys("bob"), link("r1")));
        tokio::time::advance(REMEMBERED).await;
        assert!(!entries.contains(&keys("ann"), link("r1")));
        entries.insert(&keys("ann"), link("r1"));
        entries.clear();
        assert!(!entries.contains(&keys("ann"), link("r1")));
    }
}
