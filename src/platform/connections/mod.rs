//! The connections to the platform: which one carries a call, and which call is sent again on another.
//!
//! Plain http uses one client. Over TLS the first call finds out which HTTP version the platform speaks;
//! then HTTP/1.1 uses that same client, and HTTP/2 several (`http2`).

mod body;
mod clients;
mod connects;
mod dials;
mod http2;
mod lookup;
mod protocol;
mod reply;
mod stream_limit;
#[cfg(test)]
mod tests;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::Either;
use reqwest::{Client, Request, RequestBuilder, Version};
use tokio::time::{Instant as TokioInstant, timeout_at};
use url::Url;

use self::{
    body::{CallCounts, Progress, TrackedBody},
    clients::{Clients, IDLE_TIMEOUT},
    dials::Dials,
    http2::Http2,
    protocol::{Protocol, ProtocolWatch},
};
pub(super) use self::{
    clients::{ConnectionSettings, Reuse, single_client},
    reply::{Reply, TransportError},
};
use crate::units::millis;

/// How often a call that the platform did not process is sent again, and how often one that waits for a
/// stream is moved to another connection.
const MAX_REPEATS: usize = 3;

/// Sends calls to the platform.
pub(super) struct Connections {
    client: Client,
    unpooled: Client,
    tls: Option<Tls>,
    timeout: Duration,
    started: Instant,
    /// When the last good answer arrived, in milliseconds after `started`; 0: never.
    last_answer: AtomicU64,
}

struct Tls {
    protocol: ProtocolWatch,
    /// The calls that may be sent over HTTP/1.1 on any connection.
    http1_calls: Arc<CallCounts>,
    http2: Http2,
}

impl Connections {
    /// Prepares to connect.
    ///
    /// # Errors
    /// If TLS cannot be set up; says why.
    pub(super) fn new(settings: ConnectionSettings<'_>) -> Result<Self, &'static str> {
        let timeout = settings.timeout;
        let clients = Clients::new(settings)?;
        let protocol = clients.has_tls().then(ProtocolWatch::new);
        let http1_calls = Arc::new(CallCounts::default());
        let dials = |protocol| Dials::new(Arc::clone(&http1_calls), protocol);
        let no_client = |_| "the HTTP client cannot be set up";
        Ok(Self {
            client: clients.any_version(protocol.clone().map(dials)).map_err(no_client)?,
            unpooled: clients.unpooled().map_err(no_client)?,
            tls: protocol.map(|protocol| Tls { protocol, http1_calls, http2: Http2::new(clients) }),
            timeout,
            started: Instant::now(),
            last_answer: AtomicU64::new(0),
        })
    }

    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.client.post(url).timeout(self.timeout)
    }

    /// When a call that begins now must have ended, together with a repeat of it.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Sends a call, and returns the head of its answer.
    ///
    /// Not an `async fn`: the future then does not hold the request, which reqwest has taken over.
    pub(super) fn send(
        &self,
        request: RequestBuilder,
        reuse: Reuse,
    ) -> impl Future<Output = Result<Reply<'_>, TransportError>> {
        match &self.tls {
            None => {
                let sent = match reuse {
                    Reuse::Allowed => Either::Left(request.send()),
                    Reuse::Avoided => {
                        let sent = request.build().map(|request| self.unpooled.execute(request));
                        Either::Right(async move { sent?.await })
                    }
                };
                Either::Left(async move {
                    match sent.await {
                        Ok(response) => Ok(Reply::new(response, None)),
                        Err(error) => Err(TransportError::new(error)),
                    }
                })
            }
            // Boxed to keep the caller's future small; encryption costs far more.
            Some(tls) => Either::Right(Box::pin(self.send_over_tls(tls, request, reuse))),
        }
    }

    /// A call was answered well.
    pub(super) fn answered(&self, now: Instant) {
        let answered = millis(now.saturating_duration_since(self.started));
        self.last_answer.store(answered.max(1), Ordering::Relaxed);
    }

    /// Whether a connection that was lost may have been one that carried an earlier answer.
    ///
    /// reqwest does not show whether a connection was a reused one.
    pub(super) fn may_have_been_reused(&self) -> bool {
        let answered = Duration::from_millis(self.last_answer.load(Ordering::Relaxed));
        !answered.is_zero() && self.started.elapsed().saturating_sub(answered) < IDLE_TIMEOUT
    }

    async fn send_over_tls<'a>(
        &'a self,
        tls: &'a Tls,
        request: RequestBuilder,
        reuse: Reuse,
    ) -> Result<Reply<'a>, TransportError> {
        let request = request.build().map_err(TransportError::new)?;
        let limit = request.timeout().copied().unwrap_or(self.timeout);
        let deadline = TokioInstant::now() + limit;
        loop {
            if let Some(_asking) = tls.protocol.ask() {
                let reply = self.send_over_http1(tls, request, deadline, Reuse::Allowed).await?;
                tls.protocol.set(reply.version() == Version::HTTP_2);
                return Ok(reply);
            }
            let known = timeout_at(deadline, tls.protocol.known()).await;
            match known.map_err(|_| TransportError::not_started())? {
                Protocol::Http2 => match tls.send_over_http2(&request, deadline, reuse).await {
                    // The protocol is unknown now.
                    Err(error) if error.is_http2_refused() => {}
                    sent => return sent,
                },
                Protocol::Http1 => {
                    return self.send_over_http1(tls, request, deadline, reuse).await;
                }
                // The call that asked has failed: one of those that waited for it asks now.
                Protocol::Unknown | Protocol::Asking => {}
            }
        }
    }

    /// Sends a call once, by HTTP/1.1 unless the version is being found out.
    async fn send_over_http1(
        &self,
        tls: &Tls,
        mut request: Request,
        deadline: TokioInstant,
        reuse: Reuse,
    ) -> Result<Reply<'_>, TransportError> {
        let (client, calls) = match reuse {
            Reuse::Allowed => (&self.client, Arc::clone(&tls.http1_calls)),
            Reuse::Avoided => (&self.unpooled, Arc::default()),
        };
        let progress = Arc::new(Progress::new(calls));
        track(&mut request, deadline, |bytes| TrackedBody::new(bytes, Arc::clone(&progress)));
        match client.execute(request).await {
            Ok(response) => Ok(Reply::new(response, None)),
            Err(error) => Err(TransportError::tracked(error, progress.is_sent())),
        }
    }
}

impl Tls {
    /// Sends a call on one connection after another, as long as it certainly did not reach the platform.
    async fn send_over_http2(
        &self,
        request: &Request,
        deadline: TokioInstant,
        reuse: Reuse,
    ) -> Result<Reply<'_>, TransportError> {
        let mut moves = 0;
        let mut repeats = 0;
        loop {
            let call = self.http2.start_call(reuse).map_err(TransportError::new)?;
            // Cannot fail: the body is in memory.
            let Some(mut request) = request.try_clone() else {
                return Err(TransportError::not_started());
            };
            track(&mut request, deadline, |bytes| call.body(bytes));
            let sent = {
                let mut sending = pin!(call.client().execute(request));
                if moves < MAX_REPEATS {
                    tokio::select! {
                        biased;
                        sent = &mut sending => Some(sent),
                        () = call.withdrawn_for_lack_of_a_stream() => None,
                    }
                } else {
                    Some(sending.await)
                }
            };
            let error = match sent {
                None => {
                    moves += 1;
                    continue;
                }
                Some(Ok(response)) => {
                    call.answered();
                    return Ok(Reply::new(response, Some(call)));
                }
                Some(Err(error)) => TransportError::tracked(error, call.is_sent()),
            };
            if error.is_timeout() {
                call.timed_out();
            } else if error.can_be_repeated() && repeats < MAX_REPEATS {
                if error.is_refused_stream() {
                    call.no_stream();
                }
                repeats += 1;
                continue;
            } else {
                call.give_up_connection();
                if error.is_own_connect() || !call.has_brought_answers() {
                    // The platform may no longer speak HTTP/2.
                    self.protocol.forget_http2();
                }
            }
            return Err(error);
        }
    }
}

/// Has the call's body show how far the call is, and limits its time.
fn track(
    request: &mut Request,
    deadline: TokioInstant,
    body: impl FnOnce(hyper::body::Bytes) -> TrackedBody,
) {
    let bytes = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
    let body = body(hyper::body::Bytes::copy_from_slice(bytes));
    *request.body_mut() = Some(reqwest::Body::wrap(body));
    *request.timeout_mut() = Some(deadline.saturating_duration_since(TokioInstant::now()));
}
