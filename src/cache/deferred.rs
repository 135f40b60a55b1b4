//! Scripts that run once Redis is available again.
//!
//! A link made without Redis is stored late, so that the user's next request finds it. A claim that
//! Redis never answered, but may have granted, is released late. Each script compares before it
//! writes, so a late run does no harm.

use std::{collections::VecDeque, time::SystemTime};

use deadpool_redis::redis::{ScriptInvocation, aio::MultiplexedConnection};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::scripts::SCRIPT_TIMEOUT;

/// Most scripts queued; beyond it the oldest is dropped. At a few hundred bytes each, under 2 MiB.
const CAPACITY: usize = 4_096;
/// Scripts in flight at a time. Together they get the time-out of one.
const BATCH: usize = 64;

struct DeferredScript {
    /// When a refused script is no longer retried.
    until: SystemTime,
    /// Builds the script when it runs, because the TTL that it sets has shrunk by then.
    build: Box<dyn Fn() -> ScriptInvocation<'static> + Send>,
}

/// The queue of scripts that wait for Redis.
#[derive(Default)]
pub(super) struct DeferredScripts(Mutex<VecDeque<DeferredScript>>);

impl DeferredScripts {
    /// Queues a script to run once Redis is available again, and to retry until `until` if refused.
    pub(super) fn push(
        &self,
        until: SystemTime,
        build: impl Fn() -> ScriptInvocation<'static> + Send + 'static,
    ) {
        let mut queue = self.0.lock();
        while queue.len() >= CAPACITY {
            queue.pop_front();
        }
        queue.push_back(DeferredScript { until, build: Box::new(build) });
    }

    /// Runs all queued scripts, roughly in order. Returns whether Redis wrote anything.
    ///
    /// A script that Redis refuses, for example because it is full, goes back to the end of the queue.
    /// A script that Redis does not answer is dropped: it may have run, and losing it costs at most an
    /// extra session or the rest of a lease.
    pub(super) async fn run(&self, connection: &MultiplexedConnection) -> bool {
        let mut wrote = false;
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                return wrote;
            }
            let runs = batch.iter().map(|deferred| {
                let script = (deferred.build)();
                let mut connection = connection.clone();
                async move { script.invoke_async::<bool>(&mut connection).await }
            });
            let Ok(answers) = timeout(SCRIPT_TIMEOUT, join_all(runs)).await else { return wrote };
            // `Ok(false)` proves nothing: a script that writes nothing succeeds on a replica, too.
            wrote |= answers.contains(&Ok(true));
            let now = SystemTime::now();
            let refused = batch.into_iter().zip(answers).filter_map(|(deferred, answer)| {
                let by_redis = answer.is_err_and(|error| error.code().is_some());
                (by_redis && deferred.until > now).then_some(deferred)
            });
            let refused: Vec<_> = refused.collect();
            if !refused.is_empty() {
                self.0.lock().extend(refused);
                return wrote;
            }
        }
    }

    fn next_batch(&self) -> Vec<DeferredScript> {
        let mut queue = self.0.lock();
        let len = queue.len().min(BATCH);
        queue.drain(..len).collect()
    }
}
