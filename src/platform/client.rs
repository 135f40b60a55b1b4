//! The two calls over HTTP.

use std::time::{Duration, Instant, SystemTime};
use std::{fmt, sync::Arc};

use reqwest::{
    Client, Response,
    header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use url::Url;

use super::{
    answer,
    error::{CallError, Transient},
    gate::{CallPermit, FailedCall, Gate},
    key::Key,
    link::{encode_component, without_slash},
    rate_limit::RateLimiter,
};
use crate::{
    config::{PlatformSettings, is_header_value, is_loopback},
    hash,
    message::{Request, RequestId, TraceContext},
    retry::parse_retry_after,
    session::{Call, Token},
    telemetry::{
        metrics::Metrics,
        traces::{ServerAddress, Span},
    },
    tls,
};

const TOKEN_ROUTE: &str = "/api/device/ephemeral";
const SESSION_ROUTE: &str = "/api/sessions";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

#[derive(Serialize)]
struct TokenBody {
    ttl: u64,
}

/// What a session call is made with.
#[derive(Clone, Copy)]
pub struct SessionCall<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Under which id; part of the idempotency key.
    pub request_id: &'a RequestId,
    /// The span of its delivery.
    pub span: &'a Span<'a>,
}

/// The platform, ready to be called.
pub struct PlatformClient {
    http: Client,
    token_url: Url,
    session_url: Url,
    server: ServerAddress,
    key: Key,
    gate: Gate,
    token_ttl: Duration,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for PlatformClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformClient").finish_non_exhaustive()
    }
}

impl PlatformClient {
    /// Makes the client. No connection is made yet. `rate` limits the calls, if they are limited.
    ///
    /// # Errors
    /// When the TLS library cannot be set up, or the key is no header value (which the settings have
    /// checked).
    pub fn new(
        settings: &PlatformSettings,
        rate: Option<RateLimiter>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientBuildError> {
        let mut http = Client::builder()
            .user_agent(concat!("handoff/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the key, or the person's data, to who knows where.
            .redirect(redirect::Policy::none())
            // Whether a call is repeated is decided in one place, and that is not in here. Without the
            // second word for it, a copy of each request would be kept.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_nodelay(true);
        if bypasses_proxy(&settings.url) {
            http = http.no_proxy();
        }
        if settings.url.scheme() == "http" {
            // No certificate will be seen, so none has to be there to compare it with.
            http = http.tls_certs_only([]);
        }
        let key = Key::new(&settings.api_key)
            .ok_or(ClientBuildError("the API key cannot be sent as a header"))?;
        Ok(Self {
            http: http.build().map_err(|error| {
                ClientBuildError(tls::trouble(&error).unwrap_or("TLS cannot be set up"))
            })?,
            token_url: route(&settings.url, TOKEN_ROUTE)?,
            session_url: route(&settings.url, SESSION_ROUTE)?,
            server: ServerAddress::of(&settings.url),
            key,
            gate: Gate::new(rate, Arc::clone(&metrics)),
            token_ttl: settings.token_ttl,
            timeout: settings.timeout,
            metrics,
        })
    }

    /// The gate that every call passes first.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Finds out whether the platform works again while no request is there to do so. Never ends.
    pub async fn probe_when_idle(&self) {
        loop {
            self.gate.until_unattended().await;
            let mut ticket = self.gate.idle_ticket();
            let pass = ticket.acquire(Call::Token).await;
            if pass.is_probe() {
                // What it met is noted at the gate.
                let nobodys = Span::untraced(TraceContext::from_headers(None, None));
                let _ = self.token(pass, &nobodys).await;
            }
        }
    }

    /// Asks for a token. To find out whether the key is good by now, it is read again first.
    ///
    /// # Errors
    /// [`CallError::Transient`] or [`CallError::Refused`].
    pub async fn token(&self, pass: CallPermit<'_>, span: &Span<'_>) -> Result<Token, FailedCall> {
        if pass.is_probe() {
            self.key.reload().await;
        }
        let asked_at = SystemTime::now();
        let request = self.post(
            self.token_url.clone(),
            self.key.header(),
            &TokenBody { ttl: self.token_ttl.as_secs() },
        );
        let span = span.call(Call::Token, TOKEN_ROUTE, &self.server);
        let answer = self.call(Call::Token, request, span, answer::token).await;
        let token = pass.report(answer)?;
        Ok(Token { value: token.into(), expires_at: asked_at + self.token_ttl })
    }

    /// Asks for one token of the least life and drops it, past the gate: to see whether the key is good.
    /// Also returns what time the platform says it is.
    pub async fn probe(&self) -> (Result<(), CallError>, Option<SystemTime>) {
        let request = self.post(self.token_url.clone(), self.key.header(), &TokenBody { ttl: 1 });
        match request.send().await {
            Ok(mut response) => {
                let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
                let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
                (answered(Call::Token, &mut response, answer::token).await.map(drop), date)
            }
            Err(error) => (Err(CallError::from_transport(Call::Token, &error)), None),
        }
    }

    /// Makes a session with a token, and returns the session's id.
    ///
    /// # Errors
    /// [`CallError::Transient`], [`CallError::Unauthorized`] or [`CallError::Rejected`].
    pub async fn session(
        &self,
        pass: CallPermit<'_>,
        call: SessionCall<'_>,
        token: &Token,
    ) -> Result<String, FailedCall> {
        #[derive(Serialize)]
        struct Body<'a, M> {
            metadata: M,
            #[serde(skip_serializing_if = "Option::is_none")]
            locale: Option<&'a str>,
        }
        let SessionCall { request, request_id, span } = call;
        let mut url = self.session_url.clone();
        let workflow = encode_component(&request.workflow_id);
        url.set_query(Some(&format!("workflowId={workflow}")));
        let Ok(mut authorization) = HeaderValue::from_bytes(token.value.expose_secret().as_bytes())
        else {
            let error = CallError::broken(Call::Token, "a token that no header can carry");
            return pass.report(Err(error));
        };
        authorization.set_sensitive(true);
        let metadata = request.metadata.for_user(&request.user_id);
        let body = Body { metadata, locale: request.locale.as_deref() };
        let http = self
            .post(url, authorization, &body)
            .header(IDEMPOTENCY_KEY, idempotency_key(request_id, token));
        let span = span.call(Call::Session, SESSION_ROUTE, &self.server);
        pass.report(self.call(Call::Session, http, span, answer::session_id).await)
    }

    fn post(
        &self,
        url: Url,
        authorization: HeaderValue,
        body: &impl Serialize,
    ) -> reqwest::RequestBuilder {
        // Maps with text keys, text and numbers: nothing in them can fail to serialize.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.http
            .post(url)
            .timeout(self.timeout)
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body)
    }

    /// Sends a request, reads its answer, and counts both.
    ///
    /// What is returned holds what waits for the answer, and no more: the request has been handed over
    /// by then.
    fn call<'a>(
        &'a self,
        call: Call,
        mut request: reqwest::RequestBuilder,
        mut span: Span<'a>,
        read: fn(&[u8]) -> Result<String, &'static str>,
    ) -> impl Future<Output = Result<String, CallError>> + 'a {
        request = request.header(TRACEPARENT, span.context().parent());
        if let Some(state) = span.context().state() {
            request = request.header(TRACESTATE, state);
        }
        let start = Instant::now();
        let sent = request.send();
        async move {
            let answer = exchange(call, sent, &mut span, read).await;
            let outcome = answer.as_ref().map_or_else(CallError::label, |_| "ok");
            self.metrics.called(call, outcome, start.elapsed());
            if let Err(error) = &answer {
                match error.status() {
                    Some(status) => span.set_error(status.to_string()),
                    None => span.set_error(outcome),
                }
            }
            answer
        }
    }
}

async fn exchange(
    call: Call,
    sent: impl Future<Output = reqwest::Result<Response>>,
    span: &mut Span<'_>,
    read: fn(&[u8]) -> Result<String, &'static str>,
) -> Result<String, CallError> {
    let mut response = sent.await.map_err(|error| CallError::from_transport(call, &error))?;
    span.set_status(response.status().as_u16());
    answered(call, &mut response, read).await
}

async fn answered(
    call: Call,
    response: &mut Response,
    read: fn(&[u8]) -> Result<String, &'static str>,
) -> Result<String, CallError> {
    let status = response.status();
    if !status.is_success() {
        return Err(CallError::from_status(call, status, retry_after(response)));
    }
    let body = body(call, response).await?;
    let value = read(&body).map_err(|what| CallError::broken(call, what))?;
    if call == Call::Token && !is_header_value(&value) {
        return Err(CallError::broken(call, "a token that no header can carry"));
    }
    Ok(value)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    parse_retry_after(value, SystemTime::now())
}

/// Reads an answer's body piece by piece, so that one without end is noticed before it fills memory.
async fn body(call: Call, response: &mut Response) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER => {
                body.extend_from_slice(&chunk)
            }
            Ok(Some(_)) => return Err(CallError::broken(call, "a body of more than 64 KiB")),
            Err(error) if error.is_timeout() => {
                return Err(CallError::Transient {
                    call,
                    why: Transient::Timeout,
                    retry_after: None,
                });
            }
            Err(error) if error.is_decode() && !error.is_body() => {
                return Err(CallError::broken(call, "a body that cannot be read"));
            }
            Err(error) => return Err(CallError::from_transport(call, &error)),
        }
    }
}

/// The same for every try of one request with one token, and telling neither.
fn idempotency_key(request_id: &RequestId, token: &Token) -> String {
    hash::hex(&hash::of_pair(request_id.as_str(), token.value.expose_secret()))
}

/// Parsed once, rather than for each call.
fn route(base: &Url, path: &str) -> Result<Url, ClientBuildError> {
    let url = format!("{}{path}", without_slash(base));
    Url::parse(&url).map_err(|_| ClientBuildError("its URL is none"))
}

/// A platform on this machine, or reached by plain http, is called directly: a proxy could not reach
/// the one, and would read the other's key.
fn bypasses_proxy(url: &Url) -> bool {
    url.scheme() == "http" || is_loopback(url)
}

/// Cause no client could be made.
#[derive(Debug)]
pub struct ClientBuildError(&'static str);

impl fmt::Display for ClientBuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot call the platform: {}", self.0)
    }
}

impl std::error::Error for ClientBuildError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_tell_requests_and_tokens_apart() {
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
