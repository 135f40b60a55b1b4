//! The two-call flow: a token and, with it, a session.

use std::pin::pin;

use super::make_session::{MakeSession, NewSession};
use crate::{
    cache::Lease,
    handoff::{
        asked::Asked,
        background::with_background,
        budget::CallBudget,
        calls::{Calls, Stopped},
        job::Job,
    },
    platform::CallError,
    session::{Access, Call, Session},
};

pub(super) struct TwoCalls;

impl MakeSession for TwoCalls {
    const FIRST_CALL: Call = Call::Token;

    /// Makes a session, with the token that an earlier holder of the lease saved, or with a new one.
    async fn make(
        calls: &Calls,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<NewSession, Stopped> {
        let stored = lease.and_then(|lease| lease.stored_token.clone());
        let lifetimes = calls.cache.lifetimes();
        // The earlier holder may have called with it, no earlier than the token began.
        let mut asked = match &stored {
            Some(token) => Asked::earlier(lifetimes.token_start(token.expires_at)),
            None => Asked::never(),
        };
        let mut token = match stored {
            Some(token) => token,
            None => calls.token(job, lease, budget).await?,
        };
        let mut replaced = false;
        loop {
            let made = match lease {
                // Saves the token for the next holder of the lease, in case this worker is killed during
                // the session call. Best effort: the call does not wait for Redis.
                Some(held) => {
                    let call = pin!(calls.session(job, &token, &mut asked, lease, budget));
                    with_background(call, pin!(held.save_token(&token))).await
                }
                None => calls.session(job, &token, &mut asked, lease, budget).await,
            };
            match made {
                Ok(id) => {
                    let made_at = asked.first_at;
                    let expires_at = lifetimes.link_end(made_at, token.expires_at);
                    let access = Access::Token(token.value);
                    let session = Session { access, id, made_at, expires_at };
                    return Ok(NewSession { session, is_of_repeat: asked.is_repeat });
                }
                Err(Stopped::TokenStale) => {}
                // A refused token is replaced once. After `TokenUsed` it is always replaced: a call has
                // failed before, so the retry budget or the deadline bounds it.
                Err(stopped)
                    if matches!(stopped, Stopped::TokenUsed)
                        || (stopped.blames_token() && !replaced) =>
                {
                    replaced = true;
                    calls.metrics.platform.retried(Call::Session, CallError::Unauthorized.label());
                }
                Err(stopped) => return Err(stopped),
            }
            token = calls.token(job, lease, budget).await?;
            asked = Asked::never();
        }
    }
}
