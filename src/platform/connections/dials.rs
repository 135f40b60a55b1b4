//! Makes no more HTTP/1.1 connections at a time than there are calls without one.
//!
//! hyper-util 0.1.21 begins to connect for each call that finds no idle connection. If one becomes idle before that,
//! the call takes it, and its own connection is one too many (`one_connection_for` in `client/legacy/client.rs`;
//! hyperium/hyper#4134, closed). With 1,024 calls that began at once over TLS, up to 1,590 connections were made.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{try_id, yield_now},
    time::{Instant, timeout_at},
};

use super::{body::CallCounts, connects::ConnectWatch, protocol::ProtocolWatch};

/// How many turns of the runtime pass before a connection is made: those that a call needs to be sent on a connection
/// that has just been made or become idle. Until then it counts as a call without one.
const TURNS: usize = 8;
/// How long a dial waits for others at most: one that hangs must not take the time of a call that does not need it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The connections that are being made for the calls that `calls` counts.
#[derive(Clone)]
pub(super) struct Dials(Arc<State>);

struct State {
    calls: Arc<CallCounts>,
    protocol: ProtocolWatch,
    under_way: AtomicUsize,
    /// Notified when one has ended.
    ended: Notify,
}

/// A connection that is being made.
pub(super) struct Dial(Dials);

impl Dials {
    pub(super) fn new(calls: Arc<CallCounts>, protocol: ProtocolWatch) -> Self {
        let state = State { calls, protocol, under_way: AtomicUsize::new(0), ended: Notify::new() };
        Self(Arc::new(state))
    }

    /// Begins another one, if a call has none to wait for.
    fn begin(&self) -> Option<Dial> {
        let calls = self.0.calls.waiting();
        let order = Ordering::Relaxed;
        let more = |dials: usize| (dials < calls).then_some(dials + 1);
        self.0.under_way.fetch_update(order, order, more).ok()?;
        Some(Dial(self.clone()))
    }

    /// Waits until there are fewer dials than calls without a connection, a second at most.
    ///
    /// While a call waits, there are as many dials as calls without a connection, and each that ends lets another one
    /// begin if it has left a call without one.
    async fn turn(&self) -> Dial {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            for _ in 0..TURNS {
                yield_now().await;
            }
            if let Some(dial) = self.begin() {
                return dial;
            }
            if timeout_at(deadline, self.0.ended.notified()).await.is_err() {
                self.0.under_way.fetch_add(1, Ordering::Relaxed);
                return Dial(self.clone());
            }
        }
    }
}

impl ConnectWatch for Dials {
    type Attempt = Dial;

    async fn admitted(&self) -> Option<Dial> {
        let call = try_id();
        let mut turn = pin!(self.turn());
        poll_fn(|context| {
            // hyper-util spawns the future in the background once its call has another connection.
            if try_id() != call {
                return Poll::Ready(None);
            }
            turn.as_mut().poll(context).map(Some)
        })
        .await
    }

    fn connected(&self, is_http2: bool) {
        self.0.protocol.set(is_http2);
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let Self(Dials(state)) = self;
        state.under_way.fetch_sub(1, Ordering::Relaxed);
        state.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt;
    use tokio::task::JoinHandle;

    use super::{super::body::Progress, *};

    type Admitted = Pin<Box<dyn Future<Output = Option<Dial>> + Send>>;

    /// Dials for this many calls without a connection.
    fn dials(calls: usize) -> (Dials, Vec<Progress>) {
        let counts = Arc::<CallCounts>::default();
        let calls = (0..calls).map(|_| Progress::new(Arc::clone(&counts))).collect();
        (Dials::new(counts, ProtocolWatch::new()), calls)
    }

    /// Lets other tasks run for longer than a dial takes to be admitted.
    async fn settle() {
        for _ in 0..4 * TURNS {
            yield_now().await;
        }
    }

    fn admitted(dials: &Dials) -> Admitted {
        let dials = dials.clone();
        Box::pin(async move { dials.admitted().await })
    }

    fn spawn_dial(dials: &Dials) -> JoinHandle<Option<Dial>> {
        tokio::spawn(admitted(dials))
    }

    #[tokio::test]
    async fn dial_waits_while_every_call_has_one_to_wait_for() {
        let (dials, mut calls) = dials(1);
        let first = dials.admitted().await;
        let second = spawn_dial(&dials);
        settle().await;
        assert!(!second.is_finished());
        // The call failed, so the next dial is for another one.
        calls.clear();
        drop(first);
        settle().await;
        assert!(!second.is_finished(), "no call needs it");
        calls.push(Progress::new(Arc::clone(&dials.0.calls)));
        assert!(dials.admitted().await.is_some(), "a new call's own dial");
        assert!(second.await.unwrap().is_some(), "the call still has no connection");
    }

    #[tokio::test(start_paused = true)]
    async fn dial_waits_for_one_that_hangs_no_longer_than_a_second() {
        let (dials, _calls) = dials(1);
        let _hanging = dials.admitted().await;
        let began = Instant::now();
        assert!(dials.admitted().await.is_some());
        assert_eq!(began.elapsed().as_secs(), LONGEST_WAIT.as_secs());
    }

    #[tokio::test]
    async fn dial_that_moves_to_the_background_is_not_needed() {
        let (dials, _calls) = dials(1);
        let _first = dials.admitted().await;
        let mut second = admitted(&dials);
        settle().await;
        assert!(second.as_mut().now_or_never().is_none());
        // As hyper-util does with the dial of a call that has taken another connection.
        assert!(tokio::spawn(second).await.unwrap().is_none());
    }
}
