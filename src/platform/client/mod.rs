//! The HTTP client. `two_calls` and `one_call` have the calls of the two flows.

mod one_call;
mod two_calls;

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
    deeplink::{self, Deeplink},
    error::{CallError, TransientCause},
    gate::{CallPermit, Gate, SharedProbes},
    key::ReloadableKey,
    link::{encode_component, join},
    rate_limit::RateLimiter,
    repeat::result_of_repeat,
};
use crate::{
    config::{Flow, PlatformSettings, Proxy},
    message::TraceContext,
    retry::parse_retry_after,
    session::Call,
    telemetry::{
        metrics::Metrics,
        traces::{ServerAddress, Span},
    },
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest body that the worker reads of an answer, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Calls the platform. Each call needs a permit of the gate.
pub struct PlatformClient {
    connections: Connections,
    proxy: Option<Proxy>,
    token_url: Url,
    session_url: Url,
    deeplink_url: Url,
    /// Reads the answer of the one-call flow.
    parse_deeplink: ParseAnswer<Deeplink>,
    flow: Flow,
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
            token_url: join(&settings.url, route(Call::Token)),
            session_url: join(&settings.url, route(Call::Session)),
            deeplink_url: join(&settings.url, route(Call::Deeplink)),
            parse_deeplink: match settings.public_url {
                Some(_) => deeplink::parse_replaceable,
                None => deeplink::parse,
            },
            flow: settings.flow,
            server: ServerAddress::of(&settings.url),
            key: ReloadableKey::new(&settings.api_key).ok_or(ClientBuildError::ApiKey)?,
            has_rate_limit: rate_limiter.is_some(),
            gate: Gate::new(rate_limiter, slots, Arc::clone(&metrics)),
            token_ttl: settings.token_ttl,
            metrics,
        })
    }

    /// Shares the probes of a platform that is down with other replicas, once [`Self::share_probes`] runs.
    #[must_use]
    pub(crate) fn with_shared_probes(mut self, probes: SharedProbes) -> Self {
        self.gate = self.gate.with_shared_probes(probes);
        self
    }

    /// Shares probes while the platform is down. Never returns.
    pub(crate) async fn share_probes(&self) {
        self.gate.share_probes().await;
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Probes the platform whenever the circuit breaker is open and no request waits. Never returns.
    pub(crate) async fn probe_when_idle(&self) {
        if self.flow == Flow::Deeplink {
            return self.gate.half_open_when_idle().await;
        }
        loop {
            let mut ticket = self.gate.idle_ticket().await;
            if let Some(permit) = ticket.acquire_idle_probe().await {
                let span = Span::untraced(TraceContext::from_headers(None, None));
                // `token` reports the result to the gate; nothing needs the token.
                let _ = self.token(permit, &span).await;
            }
        }
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

    /// Sends a call that makes a session. If the platform had closed the connection, sends it again at once with the
    /// same `Idempotency-Key`, as `handoff::calls` would a moment later. Also returns whether it did.
    ///
    /// `is_repeat`: the platform may be processing an earlier try with that key.
    async fn call_for_session<T>(
        &self,
        permit: &CallPermit<'_>,
        request: impl Fn() -> RequestBuilder,
        is_repeat: bool,
        span: &Span<'_>,
        parse: ParseAnswer<T>,
    ) -> Result<(T, bool), CallError> {
        let ends = self.connections.deadline();
        let mut answer = self.call(permit, request(), span, Reuse::Allowed, parse).await;
        let was_lost = self.was_ordinary_close(permit, &answer);
        if was_lost {
            let request = request().timeout(ends.saturating_duration_since(Instant::now()));
            let again = self.call(permit, request, span, Reuse::Avoided, parse).await;
            answer = result_of_repeat(answer, again);
        }
        if is_repeat {
            // Before the gate learns of it: that an earlier try is unfinished is no good answer.
            answer = answer.map_err(|error| error.of_repeated_call(permit.call()));
        }
        answer.map(|answer| (answer, was_lost))
    }

    /// Sends a call without passing the gate, and checks its answer. Also returns the platform's time, if the answer
    /// has a valid `Date` header.
    async fn send_probe<T>(
        &self,
        call: Call,
        request: RequestBuilder,
        parse: ParseAnswer<T>,
    ) -> (Result<(), CallError>, Option<SystemTime>) {
        match self.connections.send(request, Reuse::Allowed).await {
            Ok(mut reply) => {
                let date = reply.header(DATE);
                let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
                (read_answer(call, &mut reply, parse).await.map(drop), date)
            }
            Err(error) => (Err(CallError::from_transport(call, &error, self.proxy.as_ref())), None),
        }
    }

    /// Reads the API key's file again after a refused call. Returns whether the key has changed since the call, which
    /// is then repeated with nothing spent.
    async fn has_new_key(&self, sent: &HeaderValue) -> bool {
        // Boxed to keep the caller's future small; this path is rare.
        Box::pin(self.key.reload()).await;
        self.key.header() != *sent
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

    /// Sends a request, reads the answer, and records both in metrics and a span below the delivery's.
    ///
    /// Not an `async fn`: the future then holds only what it needs while it waits for the answer, not
    /// the request, which reqwest has taken over by then.
    fn call<'a, T>(
        &'a self,
        permit: &'a CallPermit<'a>,
        mut request: RequestBuilder,
        delivery: &'a Span<'a>,
        reuse: Reuse,
        parse: ParseAnswer<T>,
    ) -> impl Future<Output = Result<T, CallError>> + use<'a, T> {
        let call = permit.call();
        let mut span = delivery.call(call, route(call), &self.server);
        request = request.header(TRACEPARENT, unique(span.context().parent()));
        if let Some(state) = span.context().state() {
            request = request.header(TRACESTATE, unique(state));
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
            let answer = answer.map_err(|error| permit.judge(error));
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

/// The value of a header that no other call has. Marked as sensitive, so that HTTP/2 sends it as it is: h2 0.4 would
/// otherwise compare it with those of all calls that the connection remembers, and forget the common headers for it.
fn unique(value: impl TryInto<HeaderValue>) -> HeaderValue {
    // Always valid: hexadecimal digits, or checked as part of a message.
    let mut value = value.try_into().unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The URL of a call for a workflow.
fn with_workflow(url: &Url, workflow_id: &str) -> Url {
    let mut url = url.clone();
    let workflow = encode_component(workflow_id);
    url.set_query(Some(&format!("workflowId={workflow}")));
    url
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

fn route(call: Call) -> &'static str {
    match call {
        Call::Token => "/api/device/ephemeral",
        Call::Session => "/api/sessions",
        Call::Deeplink => "/api/v1/deeplink",
    }
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
