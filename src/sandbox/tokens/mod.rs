//! Tokens, and the session that each of them opened.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// How many tokens are kept. Beyond it, the one that expires first is dropped.
const MAX_TOKENS: usize = 1_000_000;

/// How long an expired token is kept, so that its page can say that it expired.
const EXPIRED_KEPT: Duration = Duration::from_secs(600);

pub(super) struct Tokens {
    tokens: HashMap<Arc<str>, StoredToken>,
    by_expiry: BTreeSet<(Instant, Arc<str>)>,
    max_tokens: usize,
}

struct StoredToken {
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
pub(super) enum Opened {
    New(StoredSession),
    /// The session of an earlier call with the same idempotency key.
    Repeated(StoredSession),
}

/// Why a token opens no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionError {
    /// Unknown or expired.
    NotLive,
    /// The token has opened its session.
    Used,
    /// The idempotency key was used with another user or workflow.
    OtherRequest,
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

    /// Whether a token was issued and has not expired.
    pub(super) fn is_live(&self, token: &str, now: Instant) -> bool {
        let token = self.tokens.get(token);
        token.is_some_and(|it| now < it.expires_at)
    }

    /// Opens the one session of a live token.
    ///
    /// With `honour_idempotency_key` it may be the session of an earlier call, so only the id in
    /// the result counts.
    pub(super) fn open(
        &mut self,
        token: &str,
        session: StoredSession,
        honour_idempotency_key: bool,
        now: Instant,
    ) -> Result<Opened, SessionError> {
        if !self.is_live(token, now) {
            return Err(SessionError::NotLive);
        }
        let Some(token) = self.tokens.get_mut(token) else {
            return Err(SessionError::NotLive);
        };
        let Some(existing) = &token.session else {
            return Ok(Opened::New(token.session.insert(session).clone()));
        };
        let repeated = honour_idempotency_key
            && session.idempotency_key.is_some()
            && session.idempotency_key == existing.idempotency_key;
        if !repeated {
            return Err(SessionError::Used);
        }
        if existing.user != session.user || existing.workflow != session.workflow {
            return Err(SessionError::OtherRequest);
        }
        Ok(Opened::Repeated(existing.clone()))
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

#[cfg(test)]
mod tests;
