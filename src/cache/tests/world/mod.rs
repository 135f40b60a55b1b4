//! Workers, people and a real Redis, and what should be there according to the model.

mod compare;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use deadpool_redis::redis::{self, aio::MultiplexedConnection, cmd};
use secrecy::{ExposeSecret, SecretBox};

use super::{
    Step,
    model::{Answer, Over, Person, Store, Wanted},
};
use crate::{
    cache::{
        Cache, Claim, Freshness, Keys, Lease, Overwrite, Stamp, StoreOutcome, UnansweredClaim,
        pool::Lost,
    },
    config::CacheSettings,
    session::{Session, Token},
    telemetry::metrics::Metrics,
};

pub(super) const WORKERS: usize = 3;
pub(super) const PEOPLE: usize = 2;
pub(super) const REQUESTS: usize = 4;

/// What a lease has left before it is extended, in milliseconds; less than a whole one.
const WORN: i64 = 4_000;
const LINK_MIN_LIFE: Duration = Duration::from_secs(600);

pub(super) struct World {
    url: String,
    redis: MultiplexedConnection,
    /// Sets this run apart from all others.
    name: String,
    workers: Vec<Worker>,
    people: [Person; PEOPLE],
    /// Calls that seemed lost and may still arrive.
    late: Vec<(Work, Lease, Late)>,
    /// Claims, tokens and sessions so far.
    made: usize,
    /// By which name Redis knows the claim that has a lease.
    holders: HashMap<usize, String>,
    /// Tokens that a link was stored with.
    spent: HashSet<usize>,
    /// Sessions in the order in which their links were stored.
    stored: Vec<usize>,
    /// For a person's request, the place in that order of the first link that was made for it.
    first: HashMap<(usize, usize), usize>,
}

struct Worker {
    cache: Cache,
    work: Option<(Work, Right)>,
    /// What Redis will be told when it is back, in the model's words.
    deferred: Vec<(Work, Deferred)>,
}

/// What a worker is at.
#[derive(Clone, Copy, Debug)]
struct Work {
    claim: usize,
    person: usize,
    request: usize,
    token: usize,
    newest: Option<usize>,
}

/// By what right.
enum Right {
    Lease(Lease),
    None(UnansweredClaim),
}

enum Deferred {
    Store(Store),
    Release,
}

#[derive(Clone, Copy)]
enum Late {
    Save,
    Extend,
    Release { drop_token: bool },
}

impl World {
    pub(super) async fn new() -> Self {
        let url = std::env::var("HANDOFF_REDIS_URL");
        let url = url.expect("HANDOFF_REDIS_URL is set by `make test`, which provides a Redis");
        let redis = redis::Client::open(url.as_str()).unwrap();
        let mut world = Self {
            url,
            redis: redis.get_multiplexed_async_connection().await.unwrap(),
            name: format!("test-{}", uuid::Uuid::new_v4().simple()),
            workers: Vec::new(),
            people: Default::default(),
            late: Vec::new(),
            made: 0,
            holders: HashMap::new(),
            spent: HashSet::new(),
            stored: Vec::new(),
            first: HashMap::new(),
        };
        for _ in 0..WORKERS {
            world.workers.push(world.worker().await);
        }
        world
    }

    async fn worker(&self) -> Worker {
        let settings = CacheSettings {
            url: self.url.clone().into(),
            key_prefix: self.name.clone(),
            seal_keys: vec![SecretBox::new(Box::new([7; 32]))],
            link_min_life: LINK_MIN_LIFE,
        };
        let cache = Cache::new(&settings, Metrics::new()).unwrap();
        cache.wait_connected(Duration::from_secs(10)).await;
        Worker { cache, work: None, deferred: Vec::new() }
    }

    pub(super) async fn take(&mut self, step: Step) {
        match step {
            Step::Claim { worker, person, request, wanted, lost } => {
                if self.workers[worker].work.is_none() {
                    self.claim(worker, person, request, wanted, lost).await;
                }
            }
            Step::Save { worker, lost } => self.call(worker, Late::Save, lost).await,
            Step::Extend { worker, lost } => self.call(worker, Late::Extend, lost).await,
            Step::Release { worker, drop_token, lost } => {
                self.call(worker, Late::Release { drop_token }, lost).await;
                self.workers[worker].work = None;
            }
            Step::Store { worker, short, replace, lost } => {
                self.store(worker, short, replace, lost).await;
            }
            Step::Stamp { worker, person, request, lost } => {
                let (keys, stamp) = (self.keys(person), self.stamp(person, request));
                let cache = self.lose(worker, lost);
                cache.add_stamp(&keys, &stamp).await;
                if lost != Some(Lost::Call) && self.people[person].stamp(request) {
                    self.note(person, request);
                }
            }
            Step::Crash { worker } => self.workers[worker] = self.worker().await,
            Step::Back { worker } => {
                self.workers[worker].cache.0.pool.back().await;
                for (work, deferred) in std::mem::take(&mut self.workers[worker].deferred) {
                    match deferred {
                        Deferred::Store(store) => drop(self.is_stored(work, &store)),
                        Deferred::Release => self.people[work.person].release(work.claim, false),
                    }
                }
            }
            Step::Late { which } => {
                if !self.late.is_empty() {
                    let (work, lease, late) = self.late.remove(which.index(self.late.len()));
                    self.arrive(work, &lease, late).await;
                }
            }
            Step::Expire { person } => {
                self.people[person].lease = None;
                self.delete(&[&self.keys(person).lease]).await;
            }
            Step::Forget { person } => {
                (self.people[person].link, self.people[person].token) = (None, None);
                let keys = self.keys(person);
                self.delete(&[&keys.link, &keys.token]).await;
            }
        }
        for person in 0..PEOPLE {
            self.compare(person).await;
        }
    }

    async fn claim(
        &mut self,
        worker: usize,
        person: usize,
        request: usize,
        wanted: Wanted,
        lost: Option<Lost>,
    ) {
        let (keys, stamp) = (self.keys(person), self.stamp(person, request));
        let want = match wanted {
            Wanted::Any => Freshness::Any,
            Wanted::OwnOrNewer => Freshness::SinceRequest,
            Wanted::OtherThan(other) => Freshness::NewerThan(self.stamp(person, other)),
        };
        let answer = self.lose(worker, lost).claim(&keys, &stamp, &want).await;
        let (claim, token) = (self.next(), self.next());
        let expected =
            (lost != Some(Lost::Call)).then(|| self.people[person].claim(claim, request, wanted));
        let mut work = Work { claim, person, request, token, newest: None };
        let newest = |number: Option<usize>| {
            number.map_or(Stamp::from_redis(b""), |number| self.stamp(person, number))
        };
        match (answer, expected) {
            (Err(unanswered), _) if lost.is_some() => {
                self.workers[worker].deferred.push((work, Deferred::Release));
                self.workers[worker].work = Some((work, Right::None(unanswered)));
            }
            (Ok(Claim::Link(session)), Some(Answer::Link(expected))) => {
                assert_eq!(session.id, self.session_id(person, expected), "the person's own");
                if let Wanted::OwnOrNewer = wanted {
                    let place = self.stored.iter().position(|stored| *stored == expected);
                    assert!(self.first[&(person, request)] <= place.unwrap(), "an old link");
                }
            }
            (Ok(Claim::Lease(lease)), Some(Answer::Lease { token, newest: expected })) => {
                let stored =
                    lease.stored_token().map(|token| token.value.expose_secret().to_owned());
                assert_eq!(stored, token.map(|token| self.token_text(person, token)));
                assert!(token.is_none_or(|token| !self.spent.contains(&token)), "a spent token");
                assert_eq!(*lease.newest(), newest(expected));
                (work.token, work.newest) = (token.unwrap_or(work.token), expected);
                self.workers[worker].work = Some((work, Right::Lease(lease)));
            }
            (Ok(Claim::Held { newest: known }), Some(Answer::Held { newest: expected })) => {
                assert_eq!(known, newest(expected));
            }
            (answer, expected) => panic!("{answer:?}, and not {expected:?}"),
        }
    }

    async fn store(&mut self, worker: usize, short: bool, replace: bool, lost: Option<Lost>) {
        let Some((work, right)) = self.workers[worker].work.take() else { return };
        let session = self.next();
        let over = match &right {
            Right::Lease(_) => Over::Seen(work.newest),
            Right::None(_) if replace => Over::Anything,
            Right::None(_) => Over::Seen(None),
        };
        let Work { claim, request, person, token, .. } = work;
        let life = if short { LINK_MIN_LIFE } else { 6 * LINK_MIN_LIFE };
        let made = Session {
            token: self.token(person, token, life),
            id: self.session_id(person, session),
        };
        self.lose(worker, lost);
        let stored = match right {
            Right::Lease(lease) => lease.store(&made).await,
            Right::None(unanswered) => {
                unanswered
                    .store(&made, if replace { Overwrite::Any } else { Overwrite::Never })
                    .await
            }
        };
        let store = Store { claim, request, session, over, short };
        let expected = (lost != Some(Lost::Call)).then(|| self.is_stored(work, &store));
        match stored {
            Ok(stored) => assert_eq!(Some(stored == StoreOutcome::Stored), expected),
            Err(_) => {
                assert!(lost.is_some());
                self.workers[worker].deferred.push((work, Deferred::Store(store)));
            }
        }
    }

    fn is_stored(&mut self, work: Work, store: &Store) -> bool {
        let stored = self.people[work.person].store(store);
        if stored {
            self.spent.insert(work.token);
            if !store.short {
                self.stored.push(store.session);
                self.note(work.person, store.request);
            }
        }
        stored
    }

    /// The link that is there was made for this request, too.
    fn note(&mut self, person: usize, request: usize) {
        let session = self.people[person].link.as_ref().unwrap().session;
        let place = self.stored.iter().position(|stored| *stored == session).unwrap();
        self.first.entry((person, request)).or_insert(place);
    }

    /// A worker does something by its lease, if it has one.
    async fn call(&mut self, worker: usize, what: Late, lost: Option<Lost>) {
        let Some((work, Right::Lease(lease))) = &self.workers[worker].work else { return };
        let (work, twin) = (*work, lease.twin());
        self.lose(worker, lost);
        match lost {
            Some(Lost::Call) => {
                self.send(work, &twin, what).await;
                self.late.push((work, twin, what));
            }
            _ => self.arrive(work, &twin, what).await,
        }
    }

    async fn send(&self, work: Work, lease: &Lease, what: Late) {
        match what {
            Late::Save => {
                let token = self.token(work.person, work.token, 6 * LINK_MIN_LIFE);
                lease.save_token(&token).await;
            }
            Late::Extend => lease.extend().await,
            Late::Release { drop_token } => lease.twin().release(drop_token).await,
        }
    }

    /// Something by a lease reaches Redis.
    async fn arrive(&mut self, work: Work, lease: &Lease, what: Late) {
        let key = self.keys(work.person).lease;
        if let Late::Extend = what {
            let mut wear = cmd("PEXPIRE");
            wear.arg(&key).arg(WORN).query_async::<()>(&mut self.redis).await.unwrap();
        }
        self.send(work, lease, what).await;
        let person = &mut self.people[work.person];
        match what {
            Late::Save => person.save(work.claim, work.token),
            Late::Release { drop_token } => person.release(work.claim, drop_token),
            Late::Extend => {
                let extended = person.lease == Some(work.claim);
                let left: i64 = cmd("PTTL").arg(&key).query_async(&mut self.redis).await.unwrap();
                assert_eq!(left > WORN, extended, "{left} ms left");
            }
        }
    }

    /// The worker's cache, which loses its next call, if it is to.
    fn lose(&self, worker: usize, lost: Option<Lost>) -> &Cache {
        let cache = &self.workers[worker].cache;
        if let Some(lost) = lost {
            cache.0.pool.lose(lost);
        }
        cache
    }

    fn next(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    fn keys(&self, person: usize) -> Keys {
        self.workers[0].cache.keys(&format!("user {person}"), "w")
    }

    fn stamp(&self, person: usize, request: usize) -> Stamp {
        Stamp::of(&format!("request {request} of {person}"))
    }

    fn token_text(&self, person: usize, token: usize) -> String {
        format!("token {token} of {person}")
    }

    fn token(&self, person: usize, token: usize, life: Duration) -> Token {
        let expires_at = SystemTime::now() + life;
        Token { value: self.token_text(person, token).into(), expires_at }
    }

    fn session_id(&self, person: usize, session: usize) -> String {
        format!("session {session} of {person}")
    }

    async fn delete(&self, keys: &[&str]) {
        let mut redis = self.redis.clone();
        cmd("DEL").arg(keys).query_async::<()>(&mut redis).await.unwrap();
    }

    pub(super) async fn leave_nothing(self) {
        for person in 0..PEOPLE {
            let Keys { link, token, lease } = self.keys(person);
            self.delete(&[&link, &token, &lease]).await;
        }
    }
}
