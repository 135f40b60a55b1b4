//! Workers with a real Redis, and the model of what that Redis should hold.

mod compare;
mod endings;
mod repeats;
mod steps;
mod stores;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::SecretBox;

use super::{
    model::{Index, Person, SESSION_INTERVAL_MS, StoreCall},
    step::{PEOPLE, WORKERS},
};
use crate::{
    cache::{
        Cache, Keys, Lease, Stamp, UnansweredClaim,
        test_redis::{HOUR, TestRedis, connected},
    },
    config::{CacheSettings, Flow},
    session::Token,
};

/// The life of tokens and links.
const LIFE: Duration = HOUR;

pub(super) struct World {
    redis: TestRedis,
    workers: Vec<Worker>,
    people: [Person; PEOPLE],
    /// The index entries, by person and session.
    index: HashMap<(usize, usize), Index>,
    /// What Redis calls each mark, by person and number.
    marks: HashMap<(usize, usize), String>,
    /// The sessions that no claim may return any more, by person.
    over: HashSet<(usize, usize)>,
    /// Lease calls that seemed lost and may still arrive.
    delayed: Vec<(Attempt, Arc<Lease>, LeaseCall)>,
    /// How many claims, tokens and sessions have been numbered so far.
    numbered: usize,
    /// The holder id that Redis knows each claim by.
    holder_ids: HashMap<usize, String>,
    /// The sessions that the platform has made, by person, request and token: it returns the same for another call
    /// with the same `Idempotency-Key`.
    made: HashMap<(usize, usize, usize), Made>,
    /// Tokens of stored links.
    spent: HashSet<usize>,
    /// For a person's request, the session of the first link that was made for it. A link may be stored long
    /// after its session was made, so the order of storing does not show which one is newer.
    first_link: HashMap<(usize, usize), usize>,
}

struct Worker {
    cache: Cache,
    attempt: Option<(Attempt, Right)>,
    /// What the model expects the worker's deferred scripts to do, in order.
    deferred: Vec<DeferredCall>,
    /// What it has written since its connection last failed.
    recent: Vec<Written>,
    /// The link that it hands out.
    obtained: Option<Obtained>,
}

/// A link that a worker hands out.
#[derive(Clone, Copy, Debug)]
struct Obtained {
    person: usize,
    /// The request and the session, which identify the link.
    link: (usize, usize),
    short_lived: bool,
    is_indexed: bool,
}

/// A session that the platform has made.
#[derive(Clone, Copy, Debug)]
struct Made {
    session: usize,
    /// The last claim that may have asked for it.
    claim: usize,
}

/// A worker's attempt to serve a request.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    claim: usize,
    person: usize,
    request: usize,
    token: usize,
    /// The session, if it has been made.
    session: Option<usize>,
    newest: Option<usize>,
    /// The mark at the claim, if Redis answered it.
    mark: Option<usize>,
    /// The token was saved by an earlier holder of the lease.
    is_repeat: bool,
    /// Whether the session has ended, if its index entry was written before its link.
    had_ended: Option<bool>,
}

/// What entitles a worker to make a session.
enum Right {
    Lease(Arc<Lease>),
    Unanswered(Box<UnansweredClaim>),
}

enum DeferredCall {
    Store(Attempt, StoreCall),
    Index(Obtained),
    /// Writes again what was written before.
    Repeat(Written),
    Release(Attempt),
}

impl DeferredCall {
    /// Repeated endings run first, and what else is repeated last.
    fn turn(&self) -> u8 {
        match self {
            Self::Repeat(
                Written::EndUntil { .. } | Written::EndSession { .. } | Written::Forget { .. },
            ) => 0,
            Self::Store(..) | Self::Index(_) | Self::Release(_) => 1,
            Self::Repeat(Written::Link(..) | Written::Index(_)) => 2,
        }
    }

    /// The person whose link it concerns. Index entries and the marks of sessions have other keys.
    fn link_of(&self) -> Option<usize> {
        match self {
            Self::Store(attempt, _)
            | Self::Release(attempt)
            | Self::Repeat(Written::Link(attempt, _)) => Some(attempt.person),
            Self::Repeat(Written::EndUntil { person, .. } | Written::Forget { person, .. }) => {
                Some(*person)
            }
            Self::Index(_) | Self::Repeat(Written::Index(_) | Written::EndSession { .. }) => None,
        }
    }
}

enum Written {
    Link(Attempt, StoreCall),
    Index(Obtained),
    EndUntil { person: usize, last: usize },
    EndSession { session: (usize, usize), of: Option<usize> },
    Forget { person: usize, link: (usize, usize) },
}

#[derive(Clone, Copy)]
enum LeaseCall {
    SaveToken,
    Extend,
    Release { drop_token: bool },
}

impl World {
    pub(super) async fn new() -> Self {
        let mut world = Self {
            redis: TestRedis::connect().await,
            workers: Vec::new(),
            people: Default::default(),
            index: HashMap::new(),
            marks: HashMap::new(),
            over: HashSet::new(),
            delayed: Vec::new(),
            numbered: 0,
            holder_ids: HashMap::new(),
            made: HashMap::new(),
            spent: HashSet::new(),
            first_link: HashMap::new(),
        };
        for _ in 0..WORKERS {
            world.workers.push(world.new_worker().await);
        }
        world
    }

    async fn new_worker(&self) -> Worker {
        let settings = CacheSettings {
            seal_keys: vec![SecretBox::new(Box::new([7; 32]))].into(),
            // Sessions are dated by their numbers, from 1970 on.
            session_ttl: Duration::MAX,
            ..self.redis.settings(Flow::Token)
        };
        let cache = connected(&settings).await;
        Worker { cache, attempt: None, deferred: Vec::new(), recent: Vec::new(), obtained: None }
    }

    fn next_number(&mut self) -> usize {
        self.numbered += 1;
        self.numbered
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

    /// When a session was made: later for each.
    fn made_at(&self, session: usize) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis((session * SESSION_INTERVAL_MS) as u64)
    }

    fn session_id(&self, person: usize, session: usize) -> String {
        format!("session {session} of {person}")
    }

    /// Runs in the model what waits for a person's link: a claim sends it ahead of itself.
    fn model_deferred_of(&mut self, worker: usize, person: usize) {
        let waiting = &mut self.workers[worker].deferred;
        let calls = waiting.extract_if(.., |call| call.link_of() == Some(person)).collect();
        self.model_deferred(calls);
    }

    pub(super) async fn clean_up(self) {
        self.redis.delete_all().await;
    }
}
