//! The HTTP client for the two calls.

use std::time::{Duration, Instant, SystemTime};
use std::{fmt, sync::Arc};

use reqwest::{
    RequestBuilder,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER,
    },
};
use secrecy::ExposeSecret;
use serde::Serialize;
use url::Url;

use super::{
    answer,
    connections::{ConnectionSettings, Connections, Reply, Reuse, TransportError},
    error::{CallError, TransientCause},
    gate::{CallPermit, FailedCall, FailureScope, Gate},
    key::ReloadableKey,
    link::encode_component,
    rate_limit::RateLimiter,
    repeat::result_of_repeat,
};
use crate::{
    config::{PlatformSettings, Proxy, is_header_value},
    hash,
    message::{Request, RequestId, TraceContext},
    retry::parse_retry_after,
    session::{Call, Token},
    telemetry::{
        metrics::Metrics,
        traces::{ServerAddress, Span},
    },
};

const TOKEN_ROUTE: &str = "/api/device/ephemeral";
const SESSION_ROUTE: &str = "/api/sessions";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest body that the worker reads of an answer, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// The text of `CallError` where a token is not a valid header value.
const TOKEN_NOT_SENDABLE: &str = "a token that cannot be sent as a header";

#[derive(Serialize)]
struct TokenBody {
    ttl: u64,
}

/// Calls the platform. Each call needs a permit of the gate.
pub struct PlatformClient {
    connections: Connections,
    proxy: Option<Proxy>,
    token_url: Url,
    session_url: Url,
    server: ServerAddress,
    key: ReloadableKey,
    gate: Gate,
    token_ttl: Duration,
    has_rate_limit: bool,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for PlatformClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformClient").finish_non_exhaustive()
    }
}

impl PlatformClient {
    /// Creates the client, without connecting. `slots`: how many requests may be in flight.
    ///
    /// # Errors
    /// If TLS cannot be set up, or the API key is not a valid header value.
    pub fn new(
        settings: &PlatformSettings,
        rate_limiter: Option<RateLimiter>,
        slots: u16,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientBuildError> {
        let proxy = settings.route.proxy();
        // reqwest's own reading of the environment ignores a proxy that it cannot parse.
        let connections = ConnectionSettings {
            url: &settings.url,
            timeout: settings.timeout,
            proxy: proxy
                .map(|proxy| reqwest::Proxy::all(proxy.url().expose_secret()))
                .transpose()
                .map_err(|_| ClientBuildError::Proxy)?,
            resolver: None,
        };
        Ok(Self {
            connections: Connections::new(connections).map_err(ClientBuildError::Tls)?,
            proxy: proxy.cloned(),
            token_url: join(&settings.url, TOKEN_ROUTE),
            session_url: join(&settings.url, SESSION_ROUTE),
            server: ServerAddress::of(&settings.url),
            key: ReloadableKey::new(&settings.api_key).ok_or(ClientBuildError::ApiKey)?,
            has_rate_limit: rate_limiter.is_some(),
            gate: Gate::new(rate_limiter, slots, Arc::clone(&metrics)),
            token_ttl: settings.token_ttl,
            metrics,
        })
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Probes the platform whenever the circuit breaker is open and no request waits. Never returns.
    pub(crate) async fn probe_when_idle(&self) {
        loop {
            self.gate.until_probe_needed().await;
            let mut ticket = self.gate.idle_ticket();
            let permit = ticket.acquire(Call::Token).await;
            if permit.is_probe() {
                let span = Span::untraced(TraceContext::from_headers(None, None));
                // `token` reports the result to the gate; nothing needs the token.
                let _ = self.token(permit, &span).await;
            }
        }
    }

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
        let child = || span.call(Call::Token, TOKEN_ROUTE, &self.server);
        let mut answer =
            self.call(Call::Token, request(), child(), Reuse::Allowed, parse_token).await;
        if self.was_ordinary_close(&permit, &answer) {
            let http = request().timeout(ends.saturating_duration_since(Instant::now()));
            answer = self.call(Call::Token, http, child(), Reuse::Avoided, parse_token).await;
        }
        if let Err(error @ CallError::Refused(_)) = &answer
            && !permit.is_probe()
        {
            // Boxed to keep the caller's future small; this path is rare.
            Box::pin(self.key.reload()).await;
            if self.key.header() != key {
                return Err(FailedCall { error: error.clone(), scope: FailureScope::Pause });
            }
        }
        let token = permit.report(answer)?;
        Ok(Token { value: token.into(), expires_at: requested_at + self.token_ttl })
    }

    /// Checks the API key: gets a token that lives 1 s, without passing the gate.
    ///
    /// Also returns the platform's time, if its answer has a valid `Date` header.
    pub(crate) async fn probe(&self) -> (Result<(), CallError>, Option<SystemTime>) {
        let request = self.post(self.token_url.clone(), self.key.header(), &TokenBody { ttl: 1 });
        match self.connections.send(request, Reuse::Allowed).await {
            Ok(mut reply) => {
                let date = reply.header(DATE);
                let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
                (read_answer(Call::Token, &mut reply, parse_token).await.map(drop), date)
            }
            Err(error) => {
                (Err(CallError::from_transport(Call::Token, &error, self.proxy.as_ref())), None)
            }
        }
    }

    /// Starts a session with a token, and returns the session's id. `is_repeat`: the platform may be processing
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
    ) -> Result<String, FailedCall> {
        let ends = self.connections.deadline();
        let send = |reuse| {
            let http = self.session_request(request, request_id, token)?;
            let http = match reuse {
                Reuse::Allowed => http,
                Reuse::Avoided => http.timeout(ends.saturating_duration_since(Instant::now())),
            };
            let span = span.call(Call::Session, SESSION_ROUTE, &self.server);
            Some(self.call(Call::Session, http, span, reuse, answer::parse_session_id))
        };
        let Some(sent) = send(Reuse::Allowed) else {
            return permit.report(Err(CallError::broken_answer(Call::Token, TOKEN_NOT_SENDABLE)));
        };
        let mut answer = sent.await;
        if self.was_ordinary_close(&permit, &answer)
            && let Some(sent) = send(Reuse::Avoided)
        {
            // Sent again with the same token and key, as `handoff::calls` would a moment later.
            answer = result_of_repeat(answer, sent.await);
        }
        if is_repeat {
            // Before the gate learns of it: that an earlier try is unfinished is no good answer.
            answer = answer.map_err(CallError::of_repeated_call);
        }
        permit.report(answer)
    }

    /// Returns `None` if the token is not a valid header value.
    fn session_request(
        &self,
        request: &Request,
        request_id: &RequestId,
        token: &Token,
    ) -> Option<RequestBuilder> {
        #[derive(Serialize)]
        struct SessionBody<'a, M> {
            metadata: M,
            #[serde(skip_serializing_if = "Option::is_none")]
            locale: Option<&'a str>,
        }
        let mut url = self.session_url.clone();
        let workflow = encode_component(&request.workflow_id);
        url.set_query(Some(&format!("workflowId={workflow}")));
        let token_bytes = token.value.expose_secret().as_bytes();
        let mut authorization = HeaderValue::from_bytes(token_bytes).ok()?;
        authorization.set_sensitive(true);
        let body = SessionBody { metadata: request.metadata(), locale: request.locale.as_deref() };
        let key = idempotency_key(request_id, token);
        Some(self.post(url, authorization, &body).header(IDEMPOTENCY_KEY, key))
    }

    /// Whether a call failed only because the platform had closed the connection since an earlier answer,
    /// as servers and proxies do in the ordinary course.
    ///
    /// A probe is one call, and with a rate limit each call needs a permit.
    fn was_ordinary_close<T>(
        &self,
        permit: &CallPermit<'_>,
        answer: &Result<T, CallError>,
    ) -> bool {
        let was_closed = matches!(
            answer,
            Err(CallError::Transient { cause: TransientCause::Closed { .. }, .. })
        );
        was_closed
            && !permit.is_probe()
            && !self.has_rate_limit
            && self.connections.may_have_been_reused()
    }

    fn post(&self, url: Url, authorization: HeaderValue, body: &impl Serialize) -> RequestBuilder {
        // Cannot fail: the bodies are maps with text keys, text and numbers.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.connections
            .post(url)
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            // Without it, any encoding of the answer is acceptable (RFC 9110, section 12.5.3).
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            .body(body)
    }

    /// Sends a request, reads the answer, and records both in metrics and the span.
    ///
    /// Not an `async fn`: the future then holds only what it needs while it waits for the answer, not
    /// the request, which reqwest has taken over by then.
    fn call<'a, T>(
        &'a self,
        call: Call,
        mut request: RequestBuilder,
        mut span: Span<'a>,
        reuse: Reuse,
        parse: ParseAnswer<T>,
    ) -> impl Future<Output = Result<T, CallError>> + use<'a, T> {
        request = request.header(TRACEPARENT, span.context().parent());
        if let Some(state) = span.context().state() {
            request = request.header(TRACESTATE, state);
        }
        let start = Instant::now();
        let sent = self.connections.send(request, reuse);
        async move {
            let answer = match sent.await {
                Ok(mut reply) => {
                    span.set_status(reply.status().as_u16());
                    read_answer(call, &mut reply, parse).await
                }
                Err(error) => Err(CallError::from_transport(call, &error, self.proxy.as_ref())),
            };
            let outcome = answer.as_ref().map_or_else(CallError::label, |_| "ok");
            let now = Instant::now();
            self.metrics.platform.called(call, outcome, now - start);
            match &answer {
                Ok(_) => self.connections.answered(now),
                Err(error) => match error.status() {
                    Some(status) => span.set_error(status.to_string()),
                    None => span.set_error(outcome),
                },
            }
            answer
        }
    }
}

/// Reads what a call is for out of its answer's body. The error says what the body is instead.
type ParseAnswer<T> = fn(&[u8]) -> Result<T, &'static str>;

fn parse_token(body: &[u8]) -> Result<String, &'static str> {
    let token = answer::parse_token(body)?;
    if is_header_value(&token) { Ok(token) } else { Err(TOKEN_NOT_SENDABLE) }
}

async fn read_answer<T>(
    call: Call,
    reply: &mut Reply<'_>,
    parse: ParseAnswer<T>,
) -> Result<T, CallError> {
    let status = reply.status();
    if !status.is_success() {
        let retry_after = reply.header(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| parse_retry_after(value, SystemTime::now()));
        return Err(CallError::from_status(call, status, retry_after));
    }
    let body = read_body(call, reply).await?;
    parse(&body).map_err(|what| {
        let why = answer::explain(status, reply.headers(), &body);
        CallError::broken_answer(call, why.unwrap_or(what))
    })
}

/// Reads a body in chunks, so that an endless one fails before it fills memory.
async fn read_body(call: Call, reply: &mut Reply<'_>) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    let transport = |error: TransportError| CallError::from_transport(call, &error, None);
    while let Some(chunk) = reply.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(CallError::broken_answer(call, "a body of more than 64 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The same for each try of a request with the same token; a hash, so that it reveals neither.
fn idempotency_key(request_id: &RequestId, token: &Token) -> String {
    hash::hex(&hash::of_pair(request_id.as_str(), token.value.expose_secret()))
}

fn join(base: &Url, route: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{route}", base.path().trim_end_matches('/')));
    url
}

/// Why the client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientBuildError {
    /// The API key is not a valid header value.
    #[error("cannot call the platform: the API key cannot be sent as a header")]
    ApiKey,
    /// The proxy has no valid URL. The settings check it first.
    #[error("cannot call the platform: the proxy's URL is invalid")]
    Proxy,
    /// TLS cannot be set up; says why.
    #[error("cannot call the platform: {0}")]
    Tls(&'static str),
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
