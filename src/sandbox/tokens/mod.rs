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
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { tokens: HashMap::new(), by_expiry: BTreeSet::new(), max_tokens: MAX_TOKENS }
    }

    /// Adds a token, and drops those that expired some time ago.
    pub(super) fn add(&mut self, token: &str, expires_at: Instant, now: Instant) {
        while let Some((expired_at, _)) = self.by_expiry.first()
            && (*expired_at + EXPIRED_KEPT <= now || self.tokens.len() >= self.max_tokens)
            && let Some((_, token)) = self.by_expiry.pop_first()
        {
            self.tokens.remove(&token);
        }
        let token: Arc<str> = token.into();
        self.by_expiry.insert((expires_at, Arc::clone(&token)));
        self.tokens.insert(token, StoredToken { expires_at, session: None });
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
        if token.expires_at <= now {
            return Err(LinkError::Expired);
        }
        match &token.session {
            Some(session) if &*session.id == session_id => Ok((session.clone(), token.expires_at)),
            _ => Err(LinkError::OtherSession),
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

impl StoredToken {
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
