//! What Redis is to be told as soon as it is back.
//!
//! A link that was made while Redis was away is stored then, so that the person's next request finds
//! it; a claim that was never answered, but may have been granted, is taken back. The scripts compare
//! before they write, so coming late does no harm.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use deadpool_redis::redis::{RedisResult, ScriptInvocation, aio::MultiplexedConnection};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::pool::DEADLINE;

/// How many are kept; beyond it the oldest go. At a few hundred bytes each, little memory.
const MOST: usize = 4_096;
/// How many are under way at once.
const AT_ONCE: usize = 64;

/// A script that waits for Redis.
struct Late {
    /// After that there is no point in trying it once more.
    until: SystemTime,
    /// Made when it is run: how long what it stores may live depends on that.
    script: Box<dyn Fn() -> ScriptInvocation<'static> + Send>,
}

/// Scripts that wait for Redis.
#[derive(Default)]
pub(super) struct Deferred(Mutex<VecDeque<Late>>);

impl Deferred {
    pub(super) fn push(
        &self,
        until: SystemTime,
        script: impl Fn() -> ScriptInvocation<'static> + Send + 'static,
    ) {
        let mut waiting = self.waiting();
        while waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back(Late { until, script: Box::new(script) });
    }

    /// Runs all that wait, in about the order they came. What Redis refuses, such as when it is full,
    /// waits on, behind the others. What it does not answer may have been done, and is given up: it was
    /// for thrift alone. Returns whether Redis has written any of it.
    pub(super) async fn run(&self, connection: &MultiplexedConnection) -> bool {
        let mut done = false;
        loop {
            let some = self.next_few();
            if some.is_empty() {
                return done;
            }
            let runs = some.iter().map(|late| {
                let (script, mut connection) = ((late.script)(), connection.clone());
                async move { script.invoke_async::<bool>(&mut connection).await }
            });
            let Ok(answers) = timeout(DEADLINE, join_all(runs)).await else { return done };
            // A script that finds nothing to do works on a replica, too.
            done |= answers.contains(&Ok(true));
            let now = SystemTime::now();
            let refused = |(late, answer): (Late, RedisResult<bool>)| {
                let by_redis = answer.is_err_and(|error| error.code().is_some());
                (by_redis && late.until > now).then_some(late)
            };
            let refused: Vec<Late> = some.into_iter().zip(answers).filter_map(refused).collect();
            if !refused.is_empty() {
                self.waiting().extend(refused);
                return done;
            }
        }
    }

    fn next_few(&self) -> Vec<Late> {
        let mut waiting = self.waiting();
        let few = waiting.len().min(AT_ONCE);
        waiting.drain(..few).collect()
    }

    /// The queue is whole after every step, so a panic elsewhere does not spoil it.
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Late>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
