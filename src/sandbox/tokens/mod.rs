//! Tokens and the sessions they serve.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// How many tokens are kept. Beyond it the one that ends soonest goes.
const MOST: usize = 1_000_000;

/// How long a token that has ended is remembered, so that its page can say so.
const REMEMBERED: Duration = Duration::from_secs(600);

/// All tokens, live or lately ended.
pub(super) struct Tokens {
    tokens: HashMap<Arc<str>, Token>,
    by_end: BTreeSet<(Instant, Arc<str>)>,
    most: usize,
}

struct Token {
    ends: Instant,
    /// Which API key made it, counted from the start.
    key: u64,
    session: Option<Session>,
}

/// A session, made by the one call that its token serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: Box<str>,
    pub(super) user: Arc<str>,
    pub(super) workflow: Arc<str>,
    pub(super) locale: Option<Box<str>>,
    pub(super) idempotency_key: Option<Box<str>>,
}

/// Cause a token does not serve a session call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSession {
    /// Never made, ended, or made with a key that is no longer the key.
    NotLive,
    /// It has served its session.
    Used,
    /// The idempotency key is known, the user or workflow is not the one it came with.
    OtherRequest,
}

/// Cause a link opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadLink {
    Unknown,
    Ended,
    OtherSession,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { tokens: HashMap::new(), by_end: BTreeSet::new(), most: MOST }
    }

    /// Adds a token that lives until `ends`.
    pub(super) fn add(&mut self, token: &str, ends: Instant, key: u64, now: Instant) {
        while let Some((ended, _)) = self.by_end.first()
            && (*ended + REMEMBERED <= now || self.tokens.len() >= self.most)
            && let Some((_, token)) = self.by_end.pop_first()
        {
            self.tokens.remove(&token);
        }
        let token: Arc<str> = token.into();
        self.by_end.insert((ends, Arc::clone(&token)));
        self.tokens.insert(token, Token { ends, key, session: None });
    }

    /// Whether a token is live: made with the present key, and not ended.
    pub(super) fn is_live(&self, token: &str, key: u64, now: Instant) -> bool {
        self.tokens.get(token).is_some_and(|token| token.key == key && now < token.ends)
    }

    /// Opens the one session of a live token. The id that counts is the answer's: with
    /// `honour_idempotency_key` it may be that of an earlier call.
    pub(super) fn open(
        &mut self,
        token: &str,
        session: Session,
        honour_idempotency_key: bool,
        key: u64,
        now: Instant,
    ) -> Result<Opened, NoSession> {
        if !self.is_live(token, key, now) {
            return Err(NoSession::NotLive);
        }
        let Some(token) = self.tokens.get_mut(token) else {
            return Err(NoSession::NotLive);
        };
        let Some(made) = &token.session else {
            return Ok(Opened::New(token.session.insert(session).clone()));
        };
        let repeated = honour_idempotency_key
            && session.idempotency_key.is_some()
            && session.idempotency_key == made.idempotency_key;
        if !repeated {
            return Err(NoSession::Used);
        }
        match made.user == session.user && made.workflow == session.workflow {
            true => Ok(Opened::Again(made.clone())),
            false => Err(NoSession::OtherRequest),
        }
    }

    /// The session that a link opens, and when the link ends.
    pub(super) fn look(
        &self,
        token: &str,
        session_id: &str,
        now: Instant,
    ) -> Result<(Session, Instant), BadLink> {
        let token = self.tokens.get(token).ok_or(BadLink::Unknown)?;
        if token.ends <= now {
            return Err(BadLink::Ended);
        }
        match &token.session {
            Some(session) if &*session.id == session_id => Ok((session.clone(), token.ends)),
            _ => Err(BadLink::OtherSession),
        }
    }

    /// Ends every token now.
    pub(super) fn end_all(&mut self, now: Instant) {
        for token in self.tokens.values_mut() {
            token.ends = token.ends.min(now);
        }
        self.by_end =
            self.tokens.iter().map(|(name, token)| (token.ends, Arc::clone(name))).collect();
    }
}

/// A session that a call opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    New(Session),
    /// An earlier call's, answered again.
    Again(Session),
}

#[cfg(test)]
mod tests;
