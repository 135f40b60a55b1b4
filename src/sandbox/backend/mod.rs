//! The state behind the API calls, and what they do to it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    admission::Admission,
    generate,
    options::Options,
    record::Recorder,
    request::{Refusal, SessionRequest},
    tokens::{LinkError, NOT_LIVE, OTHER_REQUEST, Opened, SessionEnd, StoredSession, Tokens},
    webhook::OpenSessions,
};

const WRONG_KEY: Refusal =
    Refusal::new(StatusCode::UNAUTHORIZED, "Authorization must be the API key");

/// The state that API calls change.
pub(super) struct Backend {
    pub(super) rng: StdRng,
    pub(super) admission: Admission,
    pub(super) tokens: Tokens,
    pub(super) recorder: Recorder,
    /// `None`: nothing needs to know of their ends.
    pub(super) open_sessions: Option<OpenSessions>,
}

impl Backend {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            rng: options.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64),
            admission: Admission::default(),
            tokens: Tokens::new(),
            recorder: Recorder::default(),
            open_sessions: options.webhook.is_some().then(OpenSessions::default),
        }
    }

    pub(super) fn issue_token(
        &mut self,
        options: &Options,
        authorization: &[u8],
        ttl: Result<Duration, Refusal>,
        now: Instant,
    ) -> Result<String, Refusal> {
        if authorization != options.api_key.as_bytes() {
            return Err(WRONG_KEY);
        }
        let expires_at = now + ttl?;
        let token = generate::token(options.token_alphabet, &mut self.rng);
        self.tokens.add(&token, expires_at, now);
        self.recorder.counts.tokens_issued += 1;
        Ok(token)
    }

    /// Makes a session, or returns the one that an earlier call with the same key made.
    pub(super) fn make_session(
        &mut self,
        options: &Options,
        authorization: &[u8],
        request: Result<SessionRequest, Refusal>,
        idempotency_key: Option<&str>,
        now: Instant,
    ) -> Result<StoredSession, Refusal> {
        // Checked before the request, so that an unauthorized caller learns nothing about it.
        let token = str::from_utf8(authorization).map_err(|_| NOT_LIVE)?;
        let live = self.tokens.live(token, now)?;
        let id = generate::session_id(&mut self.rng).into();
        let SessionRequest { user, workflow, locale } = request?;
        let session = StoredSession {
            id,
            user,
            workflow,
            locale,
            idempotency_key: idempotency_key.map(Into::into),
            times_out_at: options.session_lifetime.map(|life| now + life),
            end: None,
        };
        let ends_at = live.end_of(&session);
        let session = match live.open(session, options.honour_idempotency_key)? {
            Opened::New(session) => {
                self.recorder.add_session(&session.user, &session.workflow);
                if let Some(open) = &mut self.open_sessions {
                    open.add(&session.id, ends_at);
                }
                session.clone()
            }
            Opened::Repeated(session) => session.clone(),
        };
        self.tokens.index_session(&session.id, token);
        Ok(session)
    }

    /// Makes a session and its token, or returns those that an earlier call with the same key made.
    /// Also returns when the token expires.
    pub(super) fn make_deeplink(
        &mut self,
        options: &Options,
        authorization: &[u8],
        request: Result<(SessionRequest, Duration), Refusal>,
        idempotency_key: Option<&str>,
        now: Instant,
    ) -> Result<(Arc<str>, StoredSession, Instant), Refusal> {
        if authorization != options.api_key.as_bytes() {
            return Err(WRONG_KEY);
        }
        let (request, ttl) = request?;
        let repeated = idempotency_key.filter(|_| options.honour_idempotency_key);
        if let Some(earlier) = repeated.and_then(|key| self.tokens.deeplink_of(key)) {
            let is_same = earlier.1.user == request.user && earlier.1.workflow == request.workflow;
            return if is_same { Ok(earlier) } else { Err(OTHER_REQUEST) };
        }
        let token = self.issue_token(options, authorization, Ok(ttl), now)?;
        let session =
            self.make_session(options, token.as_bytes(), Ok(request), idempotency_key, now)?;
        if let Some(key) = idempotency_key {
            self.tokens.index_key(key, &token);
        }
        Ok((token.into(), session, now + ttl))
    }

    /// Ends the session that a link opens. Returns whether its end must be reported.
    pub(super) fn end_session(
        &mut self,
        token: &str,
        session_id: &str,
        end: SessionEnd,
        now: Instant,
    ) -> Result<bool, LinkError> {
        let ends_at = self.tokens.end_session(token, session_id, end, now)?;
        let open = self.open_sessions.as_mut();
        Ok(open.is_some_and(|open| open.remove(session_id, ends_at)))
    }

    /// Expires all tokens, and with them their sessions.
    pub(super) fn expire_tokens(&mut self, now: Instant) {
        self.tokens.expire_all(now);
        if let Some(open) = &mut self.open_sessions {
            open.end_all(now);
        }
    }
}

#[cfg(test)]
mod tests;
