//! The HTTP client for the two calls.

use std::time::{Duration, Instant, SystemTime};
use std::{fmt, sync::Arc};

use reqwest::{
    Client, Response,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER,
    },
    redirect,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use url::Url;

use super::{
    answer,
    error::CallError,
    gate::{CallPermit, FailedCall, Gate},
    key::ReloadableKey,
    link::encode_component,
    rate_limit::RateLimiter,
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
    tls,
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
    http: Client,
    proxy: Option<Proxy>,
    token_url: Url,
    session_url: Url,
    server: ServerAddress,
    key: ReloadableKey,
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
    /// Creates the client, without connecting.
    ///
    /// # Errors
    /// If TLS cannot be set up, or the API key is not a valid header value.
    pub fn new(
        settings: &PlatformSettings,
        rate_limiter: Option<RateLimiter>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientBuildError> {
        let mut http = Client::builder()
            .user_agent(concat!("handoff/", env!("CARGO_PKG_VERSION")))
            // Following a redirect would send the API key or personal data to another host.
            .redirect(redirect::Policy::none())
            // Only `handoff::calls` decides on retries. With `never()` alone, reqwest 0.13.5 would still
            // copy each request in case of a retry (not reported upstream); with a maximum of 0 it does
            // not.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .pool_idle_timeout(Duration::from_secs(20))
            // A proxy that does not answer is named only if connecting has a time limit of its own.
            .connect_timeout((settings.timeout / 2).min(Duration::from_secs(3)))
            .tcp_nodelay(true);
        // reqwest's own reading of the environment ignores a proxy that it cannot parse.
        http = match settings.route.proxy() {
            Some(proxy) => {
                let proxy = reqwest::Proxy::all(proxy.url().expose_secret());
                http.proxy(proxy.map_err(|_| ClientBuildError::Proxy)?)
            }
            None => http.no_proxy(),
        };
        if settings.url.scheme() == "http" {
            // Without TLS, a host without a certificate store must not fail.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| {
            ClientBuildError::Tls(tls::explain(&error).unwrap_or("TLS cannot be set up"))
        })?;
        Ok(Self {
            http,
            proxy: settings.route.proxy().cloned(),
            token_url: join(&settings.url, TOKEN_ROUTE),
            session_url: join(&settings.url, SESSION_ROUTE),
            server: ServerAddress::of(&settings.url),
            key: ReloadableKey::new(&settings.api_key).ok_or(ClientBuildError::ApiKey)?,
            gate: Gate::new(rate_limiter, Arc::clone(&metrics)),
            token_ttl: settings.token_ttl,
            timeout: settings.timeout,
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
        let request = self.post(
            self.token_url.clone(),
            self.key.header(),
            &TokenBody { ttl: self.token_ttl.as_secs() },
        );
        let span = span.call(Call::Token, TOKEN_ROUTE, &self.server);
        let token = permit.report(self.call(Call::Token, request, span).await)?;
        Ok(Token { value: token.into(), expires_at: requested_at + self.token_ttl })
    }

    /// Checks the API key: gets a token that lives 1 s, without passing the gate.
    ///
    /// Also returns the platform's time, if its answer has a valid `Date` header.
    pub(crate) async fn probe(&self) -> (Result<(), CallError>, Option<SystemTime>) {
        let request = self.post(self.token_url.clone(), self.key.header(), &TokenBody { ttl: 1 });
        match request.send().await {
            Ok(mut response) => {
                let date = header(&response, DATE);
                let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
                (read_answer(Call::Token, &mut response).await.map(drop), date)
            }
            Err(error) => {
                (Err(CallError::from_transport(Call::Token, &error, self.proxy.as_ref())), None)
            }
        }
    }

    /// Starts a session with a token, and returns the session's id. `span` is the delivery's.
    ///
    /// # Errors
    /// [`CallError::Transient`], [`CallError::Unauthorized`] or [`CallError::Rejected`].
    pub(crate) async fn session(
        &self,
        permit: CallPermit<'_>,
        request: &Request,
        request_id: &RequestId,
        token: &Token,
        span: &Span<'_>,
    ) -> Result<String, FailedCall> {
        #[derive(Serialize)]
        struct SessionBody<'a, M> {
            metadata: M,
            #[serde(skip_serializing_if = "Option::is_none")]
            locale: Option<&'a str>,
        }
        let mut url = self.session_url.clone();
        let workflow = encode_component(&request.workflow_id);
        url.set_query(Some(&format!("workflowId={workflow}")));
        let Ok(mut authorization) = HeaderValue::from_bytes(token.value.expose_secret().as_bytes())
        else {
            return permit.report(Err(CallError::broken_answer(Call::Token, TOKEN_NOT_SENDABLE)));
        };
        authorization.set_sensitive(true);
        let body = SessionBody { metadata: request.metadata(), locale: request.locale.as_deref() };
        let http = self
            .post(url, authorization, &body)
            .header(IDEMPOTENCY_KEY, idempotency_key(request_id, token));
        let span = span.call(Call::Session, SESSION_ROUTE, &self.server);
        permit.report(self.call(Call::Session, http, span).await)
    }

    fn post(
        &self,
        url: Url,
        authorization: HeaderValue,
        body: &impl Serialize,
    ) -> reqwest::RequestBuilder {
        // Cannot fail: the bodies are maps with text keys, text and numbers.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.http
            .post(url)
            .timeout(self.timeout)
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
    fn call<'a>(
        &'a self,
        call: Call,
        mut request: reqwest::RequestBuilder,
        mut span: Span<'a>,
    ) -> impl Future<Output = Result<String, CallError>> + 'a {
        request = request.header(TRACEPARENT, span.context().parent());
        if let Some(state) = span.context().state() {
            request = request.header(TRACESTATE, state);
        }
        let start = Instant::now();
        let sent = request.send();
        async move {
            let answer = match sent.await {
                Ok(mut response) => {
                    span.set_status(response.status().as_u16());
                    read_answer(call, &mut response).await
                }
                Err(error) => Err(CallError::from_transport(call, &error, self.proxy.as_ref())),
            };
            let outcome = answer.as_ref().map_or_else(CallError::label, |_| "ok");
            self.metrics.platform.called(call, outcome, start.elapsed());
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

async fn read_answer(call: Call, response: &mut Response) -> Result<String, CallError> {
    let status = response.status();
    if !status.is_success() {
        let retry_after = header(response, RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| parse_retry_after(value, SystemTime::now()));
        return Err(CallError::from_status(call, status, retry_after));
    }
    let body = read_body(call, response).await?;
    let value = match call {
        Call::Token => answer::parse_token(&body).and_then(|token| {
            if is_header_value(&token) { Ok(token) } else { Err(TOKEN_NOT_SENDABLE) }
        }),
        Call::Session => answer::parse_session_id(&body),
    };
    value.map_err(|what| {
        let why = answer::explain(response.status(), response.headers(), &body);
        CallError::broken_answer(call, why.unwrap_or(what))
    })
}

fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// Reads a body in chunks, so that an endless one fails before it fills memory.
async fn read_body(call: Call, response: &mut Response) -> Result<Vec<u8>, CallError> {
    let mut body = Vec::new();
    let transport = |error| CallError::from_transport(call, &error, None);
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
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
