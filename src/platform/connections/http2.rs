//! HTTP/2 connections, each for a few calls at a time.
//!
//! reqwest keeps one HTTP/2 connection per client and shows neither the connection nor how many streams the
//! server permits on it: calls beyond that number wait inside hyper until they time out. Hence a client for
//! every few calls, made on demand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::Client;
use tokio::time::{Instant, timeout};

use super::{
    body::{CallCounts, Progress, TrackedBody},
    clients::{Clients, IDLE_TIMEOUT, Reuse},
    connects::ConnectWatch,
    stream_limit::StreamLimit,
};

/// The number and length of the steps after which an unsent call counts as waiting for a stream, if its
/// connection is up. Several steps, so that one moment in which the whole process stalled is not enough.
const STREAM_PATIENCE: (u32, Duration) = (4, Duration::from_millis(25));

/// The platform's HTTP/2 connections.
pub(super) struct Http2 {
    clients: Clients,
    state: Mutex<State>,
}

struct State {
    connections: Vec<(Arc<Http2Connection>, Instant)>,
    limit: StreamLimit,
}

/// A client with one connection; it makes another one when that has ended.
struct Http2Connection {
    client: Client,
    calls: AtomicUsize,
    counts: Arc<CallCounts>,
    answers: AtomicUsize,
    connecting: Connecting,
}

/// Counts the connections that are being made.
#[derive(Clone, Default)]
struct Connecting(Arc<AtomicUsize>);

struct ConnectAttempt(Connecting);

/// A place for one call on a connection, until dropped.
pub(super) struct Http2Call<'a> {
    http2: &'a Http2,
    connection: Arc<Http2Connection>,
    progress: Arc<Progress>,
    answers_before: usize,
    /// It tries whether the server permits more calls than this on a connection.
    tries_above: Option<usize>,
}

impl Http2 {
    pub(super) fn new(clients: Clients) -> Self {
        let state = State { connections: Vec::new(), limit: StreamLimit::default() };
        Self { clients, state: Mutex::new(state) }
    }

    /// Takes a place on a connection; on a new one, if all have as many calls as they may.
    pub(super) fn start_call(&self, reuse: Reuse) -> reqwest::Result<Http2Call<'_>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let limit = state.limit.calls();
        let is_trial_due = state.limit.is_trial_due(now);
        state.connections.retain(|(connection, used_at)| {
            connection.calls() > 0 || now - *used_at < IDLE_TIMEOUT
        });
        let may_use =
            |connection: &Http2Connection| reuse == Reuse::Allowed || !connection.has_answered();
        let full = is_trial_due.then(|| {
            let mut connections = state.connections.iter();
            connections.position(|(connection, _)| {
                connection.calls() == limit && connection.sent() == limit && may_use(connection)
            })
        });
        let full = full.flatten();
        if full.is_some() {
            state.limit.start_trial(now);
        }
        // The first that has room, so that those at the end become idle.
        let chosen = full.or_else(|| {
            let mut connections = state.connections.iter();
            connections
                .position(|(connection, _)| connection.calls() < limit && may_use(connection))
        });
        let connection = match chosen.and_then(|chosen| state.connections.get_mut(chosen)) {
            Some((connection, used_at)) => {
                *used_at = now;
                Arc::clone(connection)
            }
            None => {
                let connection = Arc::new(Http2Connection::new(&self.clients)?);
                state.connections.push((Arc::clone(&connection), now));
                connection
            }
        };
        connection.calls.fetch_add(1, Ordering::Relaxed);
        drop(state);
        Ok(Http2Call {
            http2: self,
            progress: Arc::new(Progress::new(Arc::clone(&connection.counts))),
            answers_before: connection.answers.load(Ordering::Relaxed),
            tries_above: full.map(|_| limit),
            connection,
        })
    }

    /// The number of connections, and of the calls that each may have.
    #[cfg(test)]
    pub(super) fn connections_and_limit(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.connections.len(), state.limit.calls())
    }
}

impl Http2Connection {
    fn new(clients: &Clients) -> reqwest::Result<Self> {
        let connecting = Connecting::default();
        Ok(Self {
            client: clients.http2(connecting.clone())?,
            calls: AtomicUsize::new(0),
            counts: Arc::default(),
            answers: AtomicUsize::new(0),
            connecting,
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// The calls that have a stream.
    fn sent(&self) -> usize {
        self.counts.sent()
    }

    fn has_answered(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }
}

impl Http2Call<'_> {
    pub(super) fn client(&self) -> &Client {
        &self.connection.client
    }

    /// The call's body; it shows how far the call is.
    pub(super) fn body(&self, bytes: hyper::body::Bytes) -> TrackedBody {
        TrackedBody::new(bytes, Arc::clone(&self.progress))
    }

    /// Whether the platform may have received the call.
    pub(super) fn is_sent(&self) -> bool {
        self.progress.is_sent()
    }

    /// Whether the connection has brought an answer, to this call or an earlier one.
    pub(super) fn has_brought_answers(&self) -> bool {
        self.connection.has_answered()
    }

    /// Returns once the call has been withdrawn, because the server permits no more streams.
    pub(super) async fn withdrawn_for_lack_of_a_stream(&self) {
        let (patience, step) = STREAM_PATIENCE;
        // Most calls are sent as soon as the connection's task runs, and need no timer.
        self.progress.let_others_run().await;
        let mut waited = 0;
        while waited < patience {
            // Ending the timer saves a wake-up of the process.
            if self.progress.is_sent() || timeout(step, self.progress.sent()).await.is_ok() {
                self.end_trial();
                return std::future::pending().await;
            }
            waited = if self.connection.connecting.is_one() { 0 } else { waited + 1 };
        }
        if self.progress.withdraw() {
            self.no_stream();
        } else {
            std::future::pending().await
        }
    }

    /// The call has a stream. If it was a trial and no other call has ended meanwhile, the server permits more calls.
    fn end_trial(&self) {
        let sent = self.connection.sent();
        if self.tries_above.is_some_and(|limit| sent > limit) {
            self.http2.state.lock().limit.raise(sent, Instant::now());
        }
    }

    /// The server permits no more streams than the other calls have.
    pub(super) fn no_stream(&self) {
        self.progress.end();
        let permitted = self.connection.sent();
        if permitted == 0 {
            // No other call has a stream, so the server's limit cannot be the cause.
            return;
        }
        self.http2.state.lock().limit.lower(permitted, Instant::now());
    }

    /// The platform has begun to answer the call.
    pub(super) fn answered(&self) {
        self.connection.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The call timed out. If none was answered on the connection in that time, it may swallow everything.
    pub(super) fn timed_out(&self) {
        if self.connection.answers.load(Ordering::Relaxed) == self.answers_before {
            self.give_up_connection();
        }
    }

    /// Excludes the connection from further calls. It ends with its last call.
    pub(super) fn give_up_connection(&self) {
        let mut state = self.http2.state.lock();
        state.connections.retain(|(connection, _)| !Arc::ptr_eq(connection, &self.connection));
    }
}

impl Drop for Http2Call<'_> {
    fn drop(&mut self) {
        self.progress.end();
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connecting {
    fn is_one(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl ConnectWatch for Connecting {
    type Attempt = ConnectAttempt;

    async fn admitted(&self) -> Option<ConnectAttempt> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Some(ConnectAttempt(self.clone()))
    }

    fn connected(&self, _: bool) {}
}

impl Drop for ConnectAttempt {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
