//! Tokens, and the session that each of them opened.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;

use super::request::Refusal;

/// How many tokens are kept. Beyond it, the one that expires first is dropped.
const MAX_TOKENS: usize = 1_000_000;

/// How long an expired token is kept, so that its page can say that it expired.
const EXPIRED_KEPT: Duration = Duration::from_secs(600);

pub(super) const NOT_LIVE: Refusal =
    Refusal::new(StatusCode::UNAUTHORIZED, "Authorization must be a live token");
pub(super) const USED: Refusal =
    Refusal::new(StatusCode::UNAUTHORIZED, "this token has already been used for a session");
pub(super) const OTHER_REQUEST: Refusal = Refusal::new(
    StatusCode::UNPROCESSABLE_ENTITY,
    "this Idempotency-Key was used with another user or workflow",
);

pub(super) struct Tokens {
    tokens: HashMap<Arc<str>, StoredToken>,
    /// The token of each session, by the session's id.
    by_session: HashMap<Box<str>, Arc<str>>,
    /// The token of each deeplink, by the key of the call that made it.
    by_key: HashMap<Box<str>, Arc<str>>,
    by_expiry: BTreeSet<(Instant, Arc<str>)>,
    max_tokens: usize,
}

pub(super) struct StoredToken {
    expires_at: Instant,
    session: Option<StoredSession>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredSession {
    pub(super) id: Box<str>,
    pub(super) user: Arc<str>,
    pub(super) workflow: Arc<str>,
    pub(super) locale: Option<Box<str>>,
    pub(super) idempotency_key: Option<Box<str>>,
    /// When its workflow ends it.
    pub(super) times_out_at: Option<Instant>,
    /// How it has ended, unless by time.
    pub(super) end: Option<SessionEnd>,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// The person finished the verification.
    Finished,
    /// The person closed it before its end.
    Closed,
    /// Its lifetime is over.
    TimedOut,
}

/// A session that a call opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened<'a> {
    New(&'a StoredSession),
    /// The session of an earlier call with the same idempotency key.
    Repeated(&'a StoredSession),
}

/// Why a link opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    Unknown,
    Expired,
    OtherSession,
    Ended(SessionEnd),
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            tokens: HashMap::new(),
            by_session: HashMap::new(),
            by_key: HashMap::new(),
            by_expiry: BTreeSet::new(),
            max_tokens: MAX_TOKENS,
        }
    }

    /// Adds a token, and drops those that expired some time ago.
    pub(super) fn add(&mut self, token: &str, expires_at: Instant, now: Instant) {
        while let Some((expired_at, _)) = self.by_expiry.first()
            && (*expired_at + EXPIRED_KEPT <= now || self.tokens.len() >= self.max_tokens)
            && let Some((_, token)) = self.by_expiry.pop_first()
        {
            self.remove(&token);
        }
        let token: Arc<str> = token.into();
        self.by_expiry.insert((expires_at, Arc::clone(&token)));
        self.tokens.insert(token, StoredToken { expires_at, session: None });
    }

    fn remove(&mut self, token: &str) {
        let session = self.tokens.remove(token).and_then(|token| token.session);
        if let Some(session) = session {
            self.by_session.remove(&session.id);
            if let Some(key) = &session.idempotency_key
                && self.by_key.get(key).is_some_and(|of_key| **of_key == *token)
            {
                self.by_key.remove(key);
            }
        }
    }

    /// Makes a token's session known by its id.
    pub(super) fn index_session(&mut self, session_id: &str, token: &str) {
        if let Some((token, _)) = self.tokens.get_key_value(token) {
            self.by_session.insert(session_id.into(), Arc::clone(token));
        }
    }

    /// Makes a deeplink known by the key of the call that made it.
    pub(super) fn index_key(&mut self, key: &str, token: &str) {
        if let Some((token, _)) = self.tokens.get_key_value(token) {
            self.by_key.insert(key.into(), Arc::clone(token));
        }
    }

    /// Returns the deeplink that an earlier call with this key made: its token, session and expiry.
    pub(super) fn deeplink_of(&self, key: &str) -> Option<(Arc<str>, StoredSession, Instant)> {
        let name = self.by_key.get(key)?;
        let token = self.tokens.get(name)?;
        Some((Arc::clone(name), token.session.clone()?, token.expires_at))
    }

    /// Returns a session by its id.
    pub(super) fn session(&self, session_id: &str) -> Option<&StoredSession> {
        self.tokens.get(self.by_session.get(session_id)?)?.session.as_ref()
    }

    /// Ends the session that a link opens. Returns when its lifetime would have been over.
    pub(super) fn end_session(
        &mut self,
        token: &str,
        session_id: &str,
        end: SessionEnd,
        now: Instant,
    ) -> Result<Instant, LinkError> {
        let (_, ends_at) = self.find(token, session_id, now)?;
        let session = self.tokens.get_mut(token).and_then(|token| token.session.as_mut());
        let session = session.ok_or(LinkError::Unknown)?;
        session.end = Some(end);
        Ok(ends_at)
    }

    /// Returns a token that was issued and has not expired.
    pub(super) fn live(&mut self, token: &str, now: Instant) -> Result<&mut StoredToken, Refusal> {
        self.tokens.get_mut(token).filter(|it| now < it.expires_at).ok_or(NOT_LIVE)
    }

    /// Returns the session that a link opens, and when the link expires.
    pub(super) fn find(
        &self,
        token: &str,
        session_id: &str,
        now: Instant,
    ) -> Result<(StoredSession, Instant), LinkError> {
        let token = self.tokens.get(token).ok_or(LinkError::Unknown)?;
        let session = token.session.as_ref().filter(|session| &*session.id == session_id);
        match session {
            Some(StoredSession { end: Some(end), .. }) => Err(LinkError::Ended(*end)),
            _ if token.expires_at <= now => Err(LinkError::Expired),
            Some(session) if session.times_out_at.is_some_and(|at| at <= now) => {
                Err(LinkError::Ended(SessionEnd::TimedOut))
            }
            Some(session) => Ok((session.clone(), token.end_of(session))),
            None => Err(LinkError::OtherSession),
        }
    }

    pub(super) fn expire_all(&mut self, now: Instant) {
        for token in self.tokens.values_mut() {
            token.expires_at = token.expires_at.min(now);
        }
        self.by_expiry =
            self.tokens.iter().map(|(name, token)| (token.expires_at, Arc::clone(name))).collect();
    }
}

impl StoredSession {
    /// The status as the platform numbers it: 0 until it is finished, and after any other end.
    pub(super) fn status(&self) -> u8 {
        if self.end == Some(SessionEnd::Finished) { 2 } else { 0 }
    }
}

impl StoredToken {
    /// When the lifetime of the token's session is over.
    pub(super) fn end_of(&self, session: &StoredSession) -> Instant {
        session.times_out_at.map_or(self.expires_at, |at| at.min(self.expires_at))
    }

    /// Opens the one session of a token.
    ///
    /// With `honour_idempotency_key` it may be the session of an earlier call, so only the id in
    /// the result counts.
    pub(super) fn open(
        &mut self,
        session: StoredSession,
        honour_idempotency_key: bool,
    ) -> Result<Opened<'_>, Refusal> {
        let existing = match &mut self.session {
            empty @ None => return Ok(Opened::New(empty.insert(session))),
            Some(existing) => existing,
        };
        let repeated = honour_idempotency_key
            && session.idempotency_key.is_some()
            && session.idempotency_key == existing.idempotency_key;
        if !repeated {
            return Err(USED);
        }
        if existing.user != session.user || existing.workflow != session.workflow {
            return Err(OTHER_REQUEST);
        }
        Ok(Opened::Repeated(existing))
    }
}

#[cfg(test)]
mod tests;
