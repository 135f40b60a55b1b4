//! Scripts that run once Redis is available again.
//!
//! A link made without Redis is stored late, so that the user's next request finds it; until then, this
//! replica hands it out itself. A claim that Redis never answered, but may have granted, is released late.
//! What was written shortly before a connection failed is written again, because a fail-over loses what
//! had not been replicated. Each script compares before it writes, so running it late or twice does no harm.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{ScriptInvocation, aio::MultiplexedConnection};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    keys::{Keys, Stamp},
    scripts::{self, SCRIPT_TIMEOUT},
};
use crate::session::Session;

/// Most scripts queued; beyond it the oldest is dropped. At a few hundred bytes each, under 2 MiB.
const CAPACITY: usize = 4_096;
/// Scripts in flight at a time. Together they get the time-out of one.
const BATCH: usize = 64;
/// How long before a failure of the connection a script must have been answered not to be run again.
/// Replicas confirm within a second what they have, and a fail-over begins seconds after the failure.
const REPEATED: Duration = Duration::from_secs(10);

/// A script that is safe to repeat, with all it needs to run on its own.
#[derive(Clone)]
pub(super) enum LateScript {
    Store(StoreCall),
    Release { keys: Keys, holder: String },
}

/// A call of `store.lua`.
#[derive(Clone)]
pub(super) struct StoreCall {
    pub(super) keys: Keys,
    pub(super) holder: String,
    pub(super) overwrite: String,
    pub(super) stamp: Stamp,
    /// When the session was asked for.
    pub(super) made_at: SystemTime,
    /// When the link is no longer handed out.
    pub(super) until: SystemTime,
    /// The sealed link.
    pub(super) value: Vec<u8>,
}

impl StoreCall {
    /// The TTL that it sets shrinks until it runs.
    pub(super) fn script(&self) -> ScriptInvocation<'static> {
        let Self { keys, stamp, .. } = self;
        let mut script = scripts::STORE.key(&keys.link);
        script.key(&keys.token).key(&keys.lease);
        script.arg(&self.holder).arg(&self.overwrite).arg(stamp.as_str());
        script.arg(stamp.with_age(self.made_at)).arg(scripts::remaining_ms(self.until));
        script.arg(&self.value[..]);
        script
    }
}

impl LateScript {
    fn script(&self) -> ScriptInvocation<'static> {
        match self {
            Self::Store(call) => call.script(),
            Self::Release { keys, holder } => scripts::release(keys, holder, false),
        }
    }
}

struct Deferred {
    script: LateScript,
    /// When the script has lost its purpose.
    until: SystemTime,
    is_repeat: bool,
}

/// A link that Redis does not have yet.
struct PendingLink {
    /// The holder id of the script that stores it.
    holder: String,
    /// The request that it was made for.
    stamp: Stamp,
    session: Session,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Deferred>,
    /// Run last, so that they never replace what was made since.
    repeats: VecDeque<Deferred>,
    /// By the key of the link.
    pending: HashMap<String, PendingLink>,
    /// The latest stored links, oldest first.
    recent: VecDeque<(Instant, StoreCall)>,
}

/// The queue of scripts that wait for Redis.
#[derive(Default)]
pub(super) struct DeferredScripts(Mutex<Queue>);

impl DeferredScripts {
    /// Queues a link to be stored once Redis is available again.
    pub(super) fn store_later(&self, call: StoreCall, session: &Session) {
        let pending = PendingLink {
            holder: call.holder.clone(),
            stamp: call.stamp.clone(),
            session: session.clone(),
        };
        let mut queue = self.0.lock();
        queue.pending.insert(call.keys.link.clone(), pending);
        let until = call.until;
        queue.push(Deferred { until, script: LateScript::Store(call), is_repeat: false });
    }

    /// Queues the end of a lease that Redis may have granted.
    pub(super) fn release_later(&self, keys: Keys, holder: String, until: SystemTime) {
        let script = LateScript::Release { keys, holder };
        self.0.lock().push(Deferred { script, until, is_repeat: false });
    }

    /// Remembers a link that Redis has stored, in case a fail-over loses it.
    pub(super) fn stored(&self, call: StoreCall) {
        let now = Instant::now();
        let mut queue = self.0.lock();
        while queue.recent.len() >= CAPACITY
            || queue.recent.front().is_some_and(|(at, _)| now - *at > REPEATED)
        {
            queue.recent.pop_front();
        }
        queue.recent.push_back((now, call));
    }

    /// Queues what was stored shortly before a connection failed, to be stored again.
    pub(super) fn repeat_recent(&self) {
        let now = Instant::now();
        let mut queue = self.0.lock();
        let recent = std::mem::take(&mut queue.recent);
        for (at, call) in recent {
            if queue.repeats.len() >= CAPACITY {
                queue.repeats.pop_front();
            }
            if now - at <= REPEATED {
                let until = call.until;
                queue.repeats.push_back(Deferred {
                    until,
                    script: LateScript::Store(call),
                    is_repeat: true,
                });
            }
        }
    }

    /// The link of these keys that waits to be stored, with the request that it was made for.
    pub(super) fn pending(&self, keys: &Keys) -> Option<(Stamp, Session)> {
        let queue = self.0.lock();
        queue.pending.get(&keys.link).map(|link| (link.stamp.clone(), link.session.clone()))
    }

    /// Runs all queued scripts, roughly in order. Returns whether Redis wrote anything.
    ///
    /// A script that Redis refuses or does not answer goes back to the queue.
    pub(super) async fn run(&self, connection: &MultiplexedConnection) -> bool {
        let mut wrote = false;
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                return wrote;
            }
            let runs = batch.iter().map(|deferred| {
                let script = deferred.script.script();
                let mut connection = connection.clone();
                async move { script.invoke_async::<bool>(&mut connection).await }
            });
            let Ok(answers) = timeout(SCRIPT_TIMEOUT, join_all(runs)).await else {
                self.0.lock().put_back(batch);
                return wrote;
            };
            // `Ok(false)` proves nothing: a script that writes nothing succeeds on a replica, too.
            wrote |= answers.contains(&Ok(true));
            let mut failed = Vec::new();
            let mut queue = self.0.lock();
            for (deferred, answer) in batch.into_iter().zip(answers) {
                match answer {
                    Ok(_) => queue.no_longer_pending(&deferred),
                    Err(_) => failed.push(deferred),
                }
            }
            if !failed.is_empty() {
                queue.put_back(failed);
                return wrote;
            }
        }
    }

    fn next_batch(&self) -> Vec<Deferred> {
        let mut queue = self.0.lock();
        let now = SystemTime::now();
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(next) = queue.pop()
        {
            if next.until > now {
                batch.push(next);
            } else {
                queue.no_longer_pending(&next);
            }
        }
        batch
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Deferred> {
        self.waiting.pop_front().or_else(|| self.repeats.pop_front())
    }

    fn push(&mut self, deferred: Deferred) {
        while self.waiting.len() >= CAPACITY
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.no_longer_pending(&oldest);
        }
        self.waiting.push_back(deferred);
    }

    /// Queues scripts again, as the next ones.
    fn put_back(&mut self, batch: Vec<Deferred>) {
        for deferred in batch.into_iter().rev() {
            let queue = if deferred.is_repeat { &mut self.repeats } else { &mut self.waiting };
            queue.push_front(deferred);
        }
    }

    fn no_longer_pending(&mut self, deferred: &Deferred) {
        if let LateScript::Store(call) = &deferred.script
            && self.pending.get(&call.keys.link).is_some_and(|link| link.holder == call.holder)
        {
            self.pending.remove(&call.keys.link);
        }
    }
}
