//! Single-flight within the process: of several requests for the same person, one does the work and
//! the others share what comes of it. Works without Redis, and spares it when it is there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The work under way, by key.
#[derive(Debug)]
pub(super) struct SingleFlight<T> {
    under_way: Arc<Mutex<UnderWay<T>>>,
}

type UnderWay<T> = HashMap<String, watch::Receiver<Option<T>>>;

/// Who we are among those who want the same.
#[derive(Debug)]
pub(super) enum Joined<T> {
    /// Nobody is at it: do the work, then say what came of it.
    Leader(Leader<T>),
    /// Somebody is at it: wait for the result.
    Follower(Follower<T>),
}

/// Whoever does the work. Dropped without a result, say by a panic, it sets the followers free.
#[derive(Debug)]
pub(super) struct Leader<T> {
    under_way: Arc<Mutex<UnderWay<T>>>,
    key: String,
    result: watch::Sender<Option<T>>,
}

/// Whoever waits.
#[derive(Debug)]
pub(super) struct Follower<T> {
    result: watch::Receiver<Option<T>>,
}

impl<T: Clone> SingleFlight<T> {
    /// Nothing under way.
    pub(super) fn new() -> Self {
        Self { under_way: Arc::default() }
    }

    /// Joins the work under way for a key, or begins it.
    pub(super) fn join(&self, key: &str) -> Joined<T> {
        let mut under_way = lock(&self.under_way);
        if let Some(result) = under_way.get(key) {
            return Joined::Follower(Follower { result: result.clone() });
        }
        let (result, followers) = watch::channel(None);
        under_way.insert(key.to_owned(), followers);
        let under_way = Arc::clone(&self.under_way);
        Joined::Leader(Leader { under_way, key: key.to_owned(), result })
    }
}

impl<T: Clone> Default for SingleFlight<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Leader<T> {
    /// Shares what came of it with all followers.
    pub(super) fn finish(self, result: T) {
        self.result.send_replace(Some(result));
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

impl<T: Clone> Follower<T> {
    /// What came of it; `None` where the leader went without a result.
    pub(super) async fn result(mut self) -> Option<T> {
        let finished = self.result.wait_for(Option::is_some).await.ok()?;
        finished.clone()
    }
}

/// The map is whole after every step, so a panic elsewhere does not spoil it.
fn lock<T>(under_way: &Mutex<UnderWay<T>>) -> MutexGuard<'_, UnderWay<T>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(flight: &SingleFlight<u8>, key: &str) -> Leader<u8> {
        match flight.join(key) {
            Joined::Leader(leader) => leader,
            Joined::Follower(_) => panic!("somebody is at it already"),
        }
    }

    fn follower(flight: &SingleFlight<u8>, key: &str) -> Follower<u8> {
        match flight.join(key) {
            Joined::Follower(follower) => follower,
            Joined::Leader(_) => panic!("nobody is at it"),
        }
    }

    #[tokio::test]
    async fn followers_share_the_result_and_the_next_leads_again() {
        let flight = SingleFlight::new();
        let first = leader(&flight, "a");
        let others = [follower(&flight, "a"), follower(&flight, "a")];
        let _other_key = leader(&flight, "b");
        first.finish(7);
        for other in others {
            assert_eq!(other.result().await, Some(7));
        }
        let _next = leader(&flight, "a");
    }

    #[tokio::test]
    async fn a_leader_without_a_result_sets_the_followers_free() {
        let flight = SingleFlight::new();
        let first = leader(&flight, "a");
        let other = follower(&flight, "a");
        drop(first);
        assert_eq!(other.result().await, None);
        let _next = leader(&flight, "a");
    }
}
