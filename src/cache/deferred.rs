//! What Redis is to be told as soon as it is back.
//!
//! A link that was made while Redis was away is stored then, so that the person's next request finds
//! it; a claim that was never answered, but may have been granted, is taken back. The scripts compare
//! before they write, so coming late does no harm.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use deadpool_redis::redis::{ScriptInvocation, aio::MultiplexedConnection};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::pool::DEADLINE;

/// How many are kept; beyond it the oldest go. At a few hundred bytes each, little memory.
const MOST: usize = 4_096;
/// How many are under way at once.
const AT_ONCE: usize = 64;

/// Scripts that wait for Redis.
#[derive(Default)]
pub(super) struct Deferred(Mutex<VecDeque<ScriptInvocation<'static>>>);

impl Deferred {
    pub(super) fn push(&self, script: ScriptInvocation<'static>) {
        let mut scripts = self.scripts();
        if scripts.len() >= MOST {
            scripts.pop_front();
        }
        scripts.push_back(script);
    }

    /// Runs all that wait, in about the order they came. What fails now is given up: it was for
    /// thrift alone.
    pub(super) async fn run(&self, connection: &MultiplexedConnection) {
        let waiting = std::mem::take(&mut *self.scripts());
        for scripts in Vec::from(waiting).chunks(AT_ONCE) {
            let runs = scripts.iter().map(|script| {
                let mut connection = connection.clone();
                async move { script.invoke_async::<bool>(&mut connection).await }
            });
            match timeout(DEADLINE, join_all(runs)).await {
                Ok(done) if done.iter().all(Result::is_ok) => {}
                _ => return,
            }
        }
    }

    /// The queue is whole after every step, so a panic elsewhere does not spoil it.
    fn scripts(&self) -> MutexGuard<'_, VecDeque<ScriptInvocation<'static>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
