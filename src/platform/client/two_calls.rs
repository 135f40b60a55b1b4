//! The calls of the two-call flow: for a token and, with it, for a session.

use std::time::{Instant, SystemTime};

use reqwest::{RequestBuilder, header::HeaderValue};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::{IDEMPOTENCY_KEY, PlatformClient, unique, with_workflow};
use crate::{
    config::is_header_value,
    hash,
    message::{Request, RequestId},
    platform::{
        answer,
        connections::Reuse,
        error::CallError,
        gate::{CallPermit, FailedCall, FailureScope},
    },
    session::{Call, Token},
    telemetry::traces::Span,
};

/// The text of `CallError` where a token is not a valid header value.
const TOKEN_NOT_SENDABLE: &str = "a token that cannot be sent as a header";

#[derive(Serialize)]
struct TokenBody {
    ttl: u64,
}

impl PlatformClient {
    /// Gets a token. A probe first reads the API key file again: the key may have been replaced.
    ///
    /// A refused call reads it, too. If the key has changed since, the gate does not learn of the refusal, and
    /// the caller repeats the call with a permit of its own, with nothing spent.
    ///
    /// # Errors
    /// [`CallError::Transient`] or [`CallError::Refused`].
    pub(crate) async fn token(
        &self,
        permit: CallPermit<'_>,
        span: &Span<'_>,
    ) -> Result<Token, FailedCall> {
        if permit.is_probe() {
            self.key.reload().await;
        }
        // Taken before the call, so that the token never ends earlier than `expires_at`.
        let requested_at = SystemTime::now();
        let ends = self.connections.deadline();
        let key = self.key.header();
        let request = || {
            let body = TokenBody { ttl: self.token_ttl.as_secs() };
            self.post(self.token_url.clone(), key.clone(), &body)
        };
        let mut answer = self.call(&permit, request(), span, Reuse::Allowed, parse_token).await;
        if self.was_ordinary_close(&permit, &answer) {
            let http = request().timeout(ends.saturating_duration_since(Instant::now()));
            answer = self.call(&permit, http, span, Reuse::Avoided, parse_token).await;
        }
        if let Err(error @ CallError::Refused { .. }) = &answer
            && !permit.is_probe()
            && self.has_new_key(&key).await
        {
            return Err(FailedCall { error: error.clone(), scope: FailureScope::Pause });
        }
        let token = permit.report(answer)?;
        Ok(Token { value: token.into(), expires_at: requested_at + self.token_ttl })
    }

    /// Checks the API key: gets a token that lives 1 s, without passing the gate.
    ///
    /// Also returns the platform's time, if its answer has a valid `Date` header.
    pub(crate) async fn probe(&self) -> (Result<(), CallError>, Option<SystemTime>) {
        let request = self.post(self.token_url.clone(), self.key.header(), &TokenBody { ttl: 1 });
        self.send_probe(Call::Token, request, parse_token).await
    }

    /// Starts a session with a token, and returns the session's id, and whether the call was lost and sent again.
    /// `is_repeat`: the platform may be processing
    /// an earlier try with the same token. `span` is the delivery's.
    ///
    /// # Errors
    /// [`CallError::Transient`], [`CallError::Unauthorized`] or [`CallError::Rejected`].
    pub(crate) async fn session(
        &self,
        permit: CallPermit<'_>,
        request: &Request,
        request_id: &RequestId,
        token: &Token,
        is_repeat: bool,
        span: &Span<'_>,
    ) -> Result<(String, bool), FailedCall> {
        let Ok(mut authorization) = HeaderValue::from_bytes(token.value.expose_secret().as_bytes())
        else {
            return permit.report(Err(CallError::broken_answer(Call::Token, TOKEN_NOT_SENDABLE)));
        };
        authorization.set_sensitive(true);
        let http = || {
            let http = self.session_request(authorization.clone(), request);
            http.header(IDEMPOTENCY_KEY, unique(idempotency_key(request_id, token)))
        };
        let parse = answer::parse_session_id;
        let answer = self.call_for_session(&permit, http, is_repeat, span, parse).await;
        permit.report(answer)
    }

    fn session_request(&self, authorization: HeaderValue, request: &Request) -> RequestBuilder {
        #[derive(Serialize)]
        struct SessionBody<'a, M> {
            metadata: M,
            #[serde(skip_serializing_if = "Option::is_none")]
            locale: Option<&'a str>,
        }
        let body = SessionBody { metadata: request.metadata(), locale: request.locale.as_deref() };
        let url = with_workflow(&self.session_url, &request.workflow_id);
        self.post(url, authorization, &body)
    }
}

fn parse_token(body: &[u8]) -> Result<String, &'static str> {
    let token = answer::parse_token(body)?;
    if is_header_value(&token) { Ok(token) } else { Err(TOKEN_NOT_SENDABLE) }
}

/// The same for each try of a request with the same token; a hash, so that it reveals neither.
fn idempotency_key(request_id: &RequestId, token: &Token) -> String {
    hash::hex(&hash::of_pair(request_id.as_str(), token.value.expose_secret()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_differ_by_request_and_token() {
        let token =
            |value: &str| Token { value: value.to_owned().into(), expires_at: SystemTime::now() };
        let key = |id: &str, value: &str| idempotency_key(&RequestId::new(id), &token(value));
        assert_eq!(key("r", "t"), key("r", "t"));
        assert_ne!(key("r", "t"), key("r", "u"));
        assert_ne!(key("r", "t"), key("s", "t"));
        assert_ne!(key("rt", ""), key("r", "t"));
        assert_eq!(key("r", "t").len(), 32);
    }
}
