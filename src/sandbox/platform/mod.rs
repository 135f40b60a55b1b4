//! The state behind the two calls, and what they do to it.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    ask::{Refusal, SessionAsk},
    gate::Gate,
    mint,
    options::Options,
    record::Recorder,
    tokens::{NoSession, Opened, Session, Tokens},
};

const WRONG_KEY: Refusal = (StatusCode::UNAUTHORIZED, "Authorization must be the API key");
const NOT_LIVE: Refusal = (StatusCode::UNAUTHORIZED, "Authorization must be a live token");
const USED: Refusal = (StatusCode::UNAUTHORIZED, "this token has served its session");
const OTHER_REQUEST: Refusal =
    (StatusCode::UNPROCESSABLE_ENTITY, "this Idempotency-Key came with another user or workflow");

/// What changes with the calls. It is held for moments only, never while waiting.
pub(super) struct Platform {
    api_key: String,
    /// Which key this is, counted from the start.
    key: u64,
    pub(super) rng: StdRng,
    pub(super) gate: Gate,
    pub(super) tokens: Tokens,
    pub(super) recorder: Recorder,
}

impl Platform {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            api_key: options.api_key.clone(),
            key: 0,
            rng: options.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64),
            gate: Gate::default(),
            tokens: Tokens::new(),
            recorder: Recorder::default(),
        }
    }

    pub(super) fn set_api_key(&mut self, api_key: String) {
        self.api_key = api_key;
        self.key += 1;
    }

    /// Makes a token.
    pub(super) fn issue(
        &mut self,
        options: &Options,
        authorization: &[u8],
        ttl: Result<Duration, Refusal>,
        now: Instant,
    ) -> Result<String, Refusal> {
        if authorization != self.api_key.as_bytes() {
            return Err(WRONG_KEY);
        }
        let ends = now + ttl?;
        let token = mint::token(options.token_alphabet, &mut self.rng);
        self.tokens.add(&token, ends, self.key, now);
        self.recorder.counts.tokens_issued += 1;
        Ok(token)
    }

    /// Makes a session, or finds the one that the same call made before.
    pub(super) fn open(
        &mut self,
        options: &Options,
        authorization: &[u8],
        ask: Result<SessionAsk, Refusal>,
        idempotency_key: Option<&str>,
        now: Instant,
    ) -> Result<Session, Refusal> {
        let token = str::from_utf8(authorization).map_err(|_| NOT_LIVE)?;
        // Who may not ask is not told what is wrong with the question.
        if !self.tokens.is_live(token, self.key, now) {
            return Err(NOT_LIVE);
        }
        let SessionAsk { user, workflow, locale } = ask?;
        let id = mint::session_id(&mut self.rng).into();
        let idempotency_key = idempotency_key.map(Into::into);
        let session = Session { id, user, workflow, locale, idempotency_key };
        let honour = options.honour_idempotency_key;
        match self.tokens.open(token, session, honour, self.key, now) {
            Ok(Opened::New(session)) => {
                self.recorder.counts.session_made(&session.user, &session.workflow);
                Ok(session)
            }
            Ok(Opened::Again(session)) => Ok(session),
            Err(NoSession::NotLive) => Err(NOT_LIVE),
            Err(NoSession::Used) => Err(USED),
            Err(NoSession::OtherRequest) => Err(OTHER_REQUEST),
        }
    }
}

#[cfg(test)]
mod tests;
