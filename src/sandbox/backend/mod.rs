//! The state behind the API calls, and what they do to it.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    admission::Admission,
    generate,
    options::Options,
    record::Recorder,
    request::{Refusal, SessionRequest},
    tokens::{NOT_LIVE, Opened, StoredSession, Tokens},
};

const WRONG_KEY: Refusal =
    Refusal::new(StatusCode::UNAUTHORIZED, "Authorization must be the API key");

/// The state that API calls change.
pub(super) struct Backend {
    pub(super) rng: StdRng,
    pub(super) admission: Admission,
    pub(super) tokens: Tokens,
    pub(super) recorder: Recorder,
}

impl Backend {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            rng: options.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64),
            admission: Admission::default(),
            tokens: Tokens::new(),
            recorder: Recorder::default(),
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
    ) -> Result<&StoredSession, Refusal> {
        // Checked before the request, so that an unauthorized caller learns nothing about it.
        let token = str::from_utf8(authorization).map_err(|_| NOT_LIVE)?;
        let token = self.tokens.live(token, now)?;
        let SessionRequest { user, workflow, locale } = request?;
        let id = generate::session_id(&mut self.rng).into();
        let idempotency_key = idempotency_key.map(Into::into);
        let session = StoredSession { id, user, workflow, locale, idempotency_key };
        match token.open(session, options.honour_idempotency_key)? {
            Opened::New(session) => {
                self.recorder.add_session(&session.user, &session.workflow);
                Ok(session)
            }
            Opened::Repeated(session) => Ok(session),
        }
    }
}

#[cfg(test)]
mod tests;
