//! Scripts that run once Redis is available again.
//!
//! A link made without Redis is stored late, so that the user's next request finds it; until then, this
//! replica hands it out itself. A claim that Redis never answered, but may have granted, is released late.
//! What was written shortly before a connection failed is written again, because a fail-over loses what
//! had not been replicated. Each script compares before it writes, so running it late or twice does no harm.
//! In particular, a late store drops a link whose verification has ended meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{Value, aio::MultiplexedConnection};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    keys::{Keys, Stamp},
    scripts::{self, ScriptCall},
    writes::{StoreCall, Write},
};
use crate::session::Session;

/// Most scripts queued; beyond it the oldest is dropped. At a few hundred bytes each, under 4 MiB. Each request
/// for a new link writes two: the link, and the index entry of its session.
const CAPACITY: usize = 8_192;
/// Most scripts remembered of those that Redis has answered: what 64 requests in flight write in ten seconds with a
/// platform that takes 200 ms. They take 2 MiB.
const MOST_RECENT: usize = 3_072;
/// Scripts in flight at a time. Redis runs each in 40 to 60 µs, and requests on the same connection wait for them.
const BATCH: usize = 256;
/// Limit of a batch: a round trip may take almost the limit of a script, and then the batch takes longer.
const BATCH_LIMIT: Duration = Duration::from_secs(1);
/// How long before a failure of the connection a script must have been answered not to be run again.
/// Replicas confirm within a second what they have, and a fail-over begins seconds after the failure.
const REPEATED: Duration = Duration::from_secs(10);

/// A script that waits for Redis, with all it needs to run on its own. Safe to repeat.
enum LateScript {
    Write(Write),
    /// Writes again what was written before.
    Repeat(Write),
    Release {
        keys: Keys,
        holder: String,
        /// When the lease has ended by itself.
        until: SystemTime,
    },
}

impl LateScript {
    fn script(&self) -> ScriptCall {
        match self {
            Self::Write(write) | Self::Repeat(write) => write.script(),
            Self::Release { keys, holder, .. } => scripts::release(keys, holder, false),
        }
    }

    /// A key of the script; all of them are on the same server.
    fn key(&self) -> &str {
        match self {
            Self::Write(write) | Self::Repeat(write) => write.key(),
            Self::Release { keys, .. } => &keys.link,
        }
    }

    /// When the script has lost its purpose.
    fn until(&self) -> SystemTime {
        match self {
            Self::Write(write) | Self::Repeat(write) => write.until(),
            Self::Release { until, .. } => *until,
        }
    }
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
    /// Endings that were written before. Run first, so that no claim finds a link that a fail-over brought back.
    repeated_endings: VecDeque<LateScript>,
    waiting: VecDeque<LateScript>,
    /// Links and index entries that were written before. Run last, so that they never replace what was made since.
    repeats: VecDeque<LateScript>,
    /// By the key of the link.
    pending: HashMap<String, PendingLink>,
    /// What was written last, oldest first.
    recent: VecDeque<(Instant, Write)>,
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
        queue.push(LateScript::Write(Write::Link(call)));
    }

    /// Queues the index entry of a session, or the end of a link.
    pub(super) fn write_later(&self, write: Write) {
        self.0.lock().push(LateScript::Write(write));
    }

    /// Queues the end of a lease that Redis may have granted.
    pub(super) fn release_later(&self, keys: Keys, holder: String, until: SystemTime) {
        self.0.lock().push(LateScript::Release { keys, holder, until });
    }

    /// Remembers what Redis has written, in case a fail-over loses it.
    pub(super) fn written(&self, write: Write) {
        let now = Instant::now();
        let mut queue = self.0.lock();
        while queue.recent.len() >= MOST_RECENT
            || queue.recent.front().is_some_and(|(at, _)| now - *at > REPEATED)
        {
            queue.recent.pop_front();
        }
        queue.recent.push_back((now, write));
    }

    /// Queues what was written shortly before a connection failed, to be written again.
    ///
    /// `lost`: whether the server with this key may have lost it.
    pub(super) fn repeat_recent(&self, lost: &dyn Fn(&str) -> bool) {
        let now = Instant::now();
        let mut queue = self.0.lock();
        let recent = std::mem::take(&mut queue.recent);
        for (at, write) in recent {
            if !lost(write.key()) {
                queue.recent.push_back((at, write));
                continue;
            }
            let repeats = match write {
                Write::Ending(_) => &mut queue.repeated_endings,
                Write::Link(_) | Write::Index(_) => &mut queue.repeats,
            };
            if repeats.len() >= CAPACITY {
                repeats.pop_front();
            }
            if now - at <= REPEATED {
                repeats.push_back(LateScript::Repeat(write));
            }
        }
    }

    /// The link of these keys that waits to be stored, with the request that it was made for.
    pub(super) fn pending(&self, keys: &Keys) -> Option<(Stamp, Session)> {
        let queue = self.0.lock();
        queue.pending.get(&keys.link).map(|link| (link.stamp.clone(), link.session.clone()))
    }

    /// Forgets the link of these keys that waits to be stored, if its session is one of these.
    pub(super) fn forget(&self, keys: &Keys, is_ended: impl Fn(&Session) -> bool) {
        let mut queue = self.0.lock();
        if queue.pending.get(&keys.link).is_some_and(|link| is_ended(&link.session)) {
            queue.pending.remove(&keys.link);
        }
    }

    /// Forgets the link of this session, if it waits to be stored.
    pub(super) fn forget_session(&self, session_id: &str) {
        self.0.lock().pending.retain(|_, link| link.session.id != session_id);
    }

    /// Runs the queued scripts of the keys that `owns` accepts, roughly in order. Returns whether Redis wrote
    /// anything.
    ///
    /// Begins no batch after `until`. A script that Redis refuses or does not answer goes back to the queue, and so
    /// do those under way if the run is cancelled.
    pub(super) async fn run(
        &self,
        connection: &MultiplexedConnection,
        owns: &(dyn Fn(&str) -> bool + Sync),
        until: Option<Instant>,
    ) -> bool {
        let mut wrote = false;
        loop {
            let batch = self.take(BATCH, &|script| owns(script.key()));
            if batch.scripts.is_empty() {
                return wrote;
            }
            let (wrote_now, complete) = batch.run(connection).await;
            wrote |= wrote_now;
            if !complete || until.is_some_and(|until| Instant::now() >= until) {
                return wrote;
            }
        }
    }

    /// Whether no script is queued. Those under way are not.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().in_order().iter().all(|queued| queued.is_empty())
    }

    /// The queued scripts of one key, to be sent ahead of a claim of it. `None` without any.
    pub(super) fn batch_of(&self, key: &str) -> Option<Batch<'_>> {
        let batch = self.take(usize::MAX, &|script| script.key() == key);
        (!batch.scripts.is_empty()).then_some(batch)
    }

    fn take(&self, most: usize, is_wanted: &dyn Fn(&LateScript) -> bool) -> Batch<'_> {
        let mut queue = self.0.lock();
        let now = SystemTime::now();
        let (mut scripts, mut expired) = (Vec::new(), Vec::new());
        for queued in queue.in_order() {
            // Passes over the scripts of other servers once, not once for each that it takes.
            let mut place = 0;
            while scripts.len() < most
                && let Some(next) = queued.get(place)
            {
                if !is_wanted(next) {
                    place += 1;
                } else if let Some(next) = queued.remove(place) {
                    if next.until() > now { &mut scripts } else { &mut expired }.push(next);
                }
            }
        }
        for script in expired {
            no_longer_pending(&mut queue.pending, &script);
        }
        drop(queue);
        Batch { queue: &self.0, scripts }
    }
}

/// Scripts under way. Those that are left when it is dropped are the next ones to run.
pub(super) struct Batch<'a> {
    queue: &'a Mutex<Queue>,
    scripts: Vec<LateScript>,
}

impl Batch<'_> {
    /// Sends all scripts at once. Returns whether Redis wrote anything, and whether it answered each well.
    pub(super) async fn run(mut self, connection: &MultiplexedConnection) -> (bool, bool) {
        let runs = self.scripts.iter().map(|late| {
            let script = late.script();
            let mut connection = connection.clone();
            async move { script.run::<Value>(&mut connection).await }
        });
        let Ok(answers) = timeout(BATCH_LIMIT, join_all(runs)).await else { return (false, false) };
        // A zero proves nothing: a script that writes nothing succeeds on a replica, too.
        let is_positive = |answer: &Value| matches!(answer, Value::Int(1..));
        let wrote = answers.iter().flatten().any(is_positive);
        self.remove_answered(answers.iter().map(|answer| answer.as_ref().ok().map(is_positive)));
        (wrote, self.scripts.is_empty())
    }

    /// Takes the answers in order: `None`, or whether it was positive.
    fn remove_answered(&mut self, mut answers: impl Iterator<Item = Option<bool>>) {
        let mut queue = self.queue.lock();
        self.scripts.retain(|script| {
            let Some(is_positive) = answers.next().flatten() else { return true };
            no_longer_pending(&mut queue.pending, script);
            if let LateScript::Write(Write::Index(call)) | LateScript::Repeat(Write::Index(call)) =
                script
                && is_positive
            {
                queue.push(LateScript::Write(Write::Ending(call.forget())));
            }
            false
        });
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        for script in self.scripts.drain(..).rev() {
            let queued = match script {
                LateScript::Repeat(Write::Ending(_)) => &mut queue.repeated_endings,
                LateScript::Repeat(_) => &mut queue.repeats,
                LateScript::Write(_) | LateScript::Release { .. } => &mut queue.waiting,
            };
            queued.push_front(script);
        }
    }
}

impl Queue {
    /// The queues, in the order in which they run.
    fn in_order(&mut self) -> [&mut VecDeque<LateScript>; 3] {
        [&mut self.repeated_endings, &mut self.waiting, &mut self.repeats]
    }

    fn push(&mut self, script: LateScript) {
        while self.waiting.len() >= CAPACITY
            && let Some(oldest) = self.waiting.pop_front()
        {
            no_longer_pending(&mut self.pending, &oldest);
        }
        self.waiting.push_back(script);
    }
}

fn no_longer_pending(pending: &mut HashMap<String, PendingLink>, script: &LateScript) {
    if let LateScript::Write(Write::Link(call)) = script
        && pending.get(&call.keys.link).is_some_and(|link| link.holder == call.holder)
    {
        pending.remove(&call.keys.link);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{
        cache::{Keys, test_redis::TestRedis},
        config::Flow,
    };

    #[tokio::test]
    async fn scripts_under_way_when_a_run_is_cancelled_are_run_again() {
        let connection = TestRedis::connect().await.connection;
        let scripts = DeferredScripts::default();
        let until = SystemTime::now() + Duration::from_secs(60);
        for holder in ["a", "b"] {
            scripts.release_later(
                Keys::new("test", Flow::Token, holder, "w"),
                holder.to_owned(),
                until,
            );
        }
        // The answers need a round trip, so that the first poll does not complete it.
        assert_eq!(scripts.run(&connection, &|_| true, None).now_or_never(), None);
        let waiting = |scripts: &DeferredScripts| scripts.0.lock().waiting.len();
        assert_eq!(waiting(&scripts), 2);
        assert!(!scripts.run(&connection, &|_| true, None).await, "no lease of theirs to end");
        assert_eq!(waiting(&scripts), 0);
    }

    #[tokio::test]
    async fn scripts_of_one_key_are_taken_out_of_thousands_and_those_left_keep_their_order() {
        let connection = TestRedis::connect().await.connection;
        let scripts = DeferredScripts::default();
        let until = SystemTime::now() + Duration::from_secs(60);
        let keys = |user: usize| Keys::new("test", Flow::Token, &user.to_string(), "w");
        for user in 0..CAPACITY {
            scripts.release_later(keys(user), "holder".to_owned(), until);
        }
        let own = scripts.batch_of(&keys(7_000).link).unwrap();
        assert_eq!(own.scripts.len(), 1);
        drop(own);
        assert!(scripts.batch_of(&keys(CAPACITY).link).is_none());
        assert_eq!(
            scripts.batch_of(&keys(7_000).link).unwrap().run(&connection).await,
            (false, true)
        );
        // One batch, as if there was no time for more.
        scripts.run(&connection, &|_| true, Some(Instant::now())).await;
        assert_eq!(scripts.0.lock().waiting.len(), CAPACITY - 1 - BATCH);
        scripts.run(&connection, &|_| true, None).await;
        assert!(scripts.0.lock().waiting.is_empty());
    }
}
