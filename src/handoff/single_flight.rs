//! Single-flight within the process: of several requests for one key, one does the work and the others
//! share its result. It works without Redis, and saves Redis round trips while Redis is available.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// The work in flight, by key.
pub(crate) struct SingleFlight<T> {
    in_flight: Arc<Mutex<Flights<T>>>,
}

type Flights<T> = HashMap<String, Follower<T>>;

/// The caller's part among concurrent requests for one key.
pub(crate) enum Joined<T> {
    /// No work is in flight: do it, then [`Leader::finish`].
    Leader(Leader<T>),
    /// Another request does the work: wait for its result.
    Follower(Follower<T>),
}

/// The request that does the work. Dropped without a result, by a panic say, it releases its followers.
pub(crate) struct Leader<T> {
    in_flight: Arc<Mutex<Flights<T>>>,
    key: String,
    result: watch::Sender<Option<T>>,
    renewal: Arc<Notify>,
}

/// A request that waits for the leader's result.
#[derive(Clone)]
pub(crate) struct Follower<T> {
    result: watch::Receiver<Option<T>>,
    renewal: Arc<Notify>,
}

impl<T: Clone> SingleFlight<T> {
    pub(crate) fn new() -> Self {
        Self { in_flight: Arc::default() }
    }

    /// Joins the work in flight for a key, or starts it.
    pub(crate) fn join(&self, key: &str) -> Joined<T> {
        let mut in_flight = self.in_flight.lock();
        if let Some(follower) = in_flight.get(key) {
            return Joined::Follower(follower.clone());
        }
        let (sender, result) = watch::channel(None);
        let renewal = Arc::<Notify>::default();
        let follower = Follower { result, renewal: Arc::clone(&renewal) };
        in_flight.insert(key.to_owned(), follower);
        let in_flight = Arc::clone(&self.in_flight);
        Joined::Leader(Leader { in_flight, key: key.to_owned(), result: sender, renewal })
    }
}

impl<T> Leader<T> {
    /// Shares the result with all followers.
    pub(crate) fn finish(self, result: T) {
        self.result.send_replace(Some(result));
    }

    /// Waits until a renewal has joined since the last call.
    pub(crate) async fn renewal_joined(&self) {
        self.renewal.notified().await;
    }
}

impl<T> Drop for Leader<T> {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.key);
    }
}

impl<T: Clone> Follower<T> {
    /// Lets the leader know that this request is a renewal.
    pub(crate) fn announce_renewal(&self) {
        self.renewal.notify_one();
    }

    /// The leader's result; `None` if the leader was dropped without one.
    pub(crate) async fn result(mut self) -> Option<T> {
        let finished = self.result.wait_for(Option::is_some).await.ok()?;
        finished.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn leader(flight: &SingleFlight<u8>, key: &str) -> Leader<u8> {
        match flight.join(key) {
            Joined::Leader(leader) => leader,
            Joined::Follower(_) => panic!("the work is already in flight"),
        }
    }

    fn follower(flight: &SingleFlight<u8>, key: &str) -> Follower<u8> {
        match flight.join(key) {
            Joined::Follower(follower) => follower,
            Joined::Leader(_) => panic!("no work is in flight"),
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
    async fn leader_notices_a_renewal_that_joined_before_it_waits() {
        let flight = SingleFlight::new();
        let leader = leader(&flight, "a");
        follower(&flight, "a").announce_renewal();
        assert!(leader.renewal_joined().now_or_never().is_some());
        let _plain = follower(&flight, "a");
        assert!(leader.renewal_joined().now_or_never().is_none());
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
