//! The task that keeps one good Redis connection on offer.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_redis::{
    Connection,
    redis::{self, ErrorKind, RedisError, aio::MultiplexedConnection},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    connector::Connector,
    deferred::DeferredScripts,
    dial::CONNECT_TIMEOUT,
    error::CacheError,
    log::{AvailabilityLog, RefusalLog},
    refusal::{Recovery, Refusal},
    scripts::{self, SCRIPT_TIMEOUT},
};
use crate::{
    retry::{Backoff, LoginWait},
    telemetry::metrics::Metrics,
};

/// How often the keeper sends a PING on a connection.
///
/// redis 1.8 reports a closed connection only to the next command, or as a RESP3 push, and this connection speaks
/// RESP2 (redis-rs/redis-rs#1096). It reports a half-open connection only once TCP gives up, after a minute or more
/// (redis-rs/redis-rs#1513). Not in unit tests: a late PING repeats writes, which the model does not expect.
const PING_INTERVAL: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 5 });
const SHORTEST_DELAY: Duration = Duration::from_millis(50);
/// Requests wait for the reconnection, three seconds by default.
const LONGEST_DELAY: Duration = Duration::from_millis(500);

pub(super) type Owns = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// A connection, and the number by which [`ConnectionState`] refers to it.
type Numbered = (u64, MultiplexedConnection);

/// Shared by the operations, which report their results, and the keeper, which replaces connections.
///
/// Connections are numbered, so that a late error of an earlier connection is not held against the
/// current one.
pub(super) struct ConnectionState {
    pub(super) current: watch::Sender<Option<Numbered>>,
    deferred: Arc<DeferredScripts>,
    /// Whether this server has a key. Only then a deferred script of that key is run here.
    owns: Owns,
    /// There may be deferred scripts to run.
    pub(super) has_work: Notify,
    /// Asks for another look at which server has which keys.
    refresh: Arc<Notify>,
    /// The latest connection that an operation reported as failed.
    failed: AtomicU64,
    failure: Notify,
    /// The last operation failed, on whichever connection.
    degraded: AtomicBool,
    /// Since when Redis executes nothing. `None` while it is available; then `degraded` may be set all the
    /// same, because Redis refuses an operation until an operator changes something.
    unavailable_since: Mutex<Option<Instant>>,
    recovery: Notify,
    /// The connection on which Redis itself said that it is unusable, and why: a read-only replica, for
    /// example.
    unusable: Mutex<Option<(u64, Refusal)>>,
    /// The last operation that Redis answered was refused until an operator changes something.
    refusing: AtomicBool,
    refusal_log: Mutex<RefusalLog>,
    metrics: Arc<Metrics>,
}

impl ConnectionState {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        deferred: Arc<DeferredScripts>,
        refresh: Arc<Notify>,
        owns: Owns,
    ) -> Self {
        Self {
            current: watch::Sender::default(),
            deferred,
            owns,
            has_work: Notify::new(),
            refresh,
            failed: AtomicU64::default(),
            failure: Notify::default(),
            degraded: AtomicBool::new(true),
            unavailable_since: Mutex::new(Some(Instant::now())),
            recovery: Notify::default(),
            unusable: Mutex::default(),
            refusing: AtomicBool::default(),
            refusal_log: Mutex::new(RefusalLog::new()),
            metrics,
        }
    }

    fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// Whether there is a connection, and the last operation succeeded.
    ///
    /// A Redis that is full keeps its connection but refuses writes, and so is not available.
    pub(super) fn is_available(&self) -> bool {
        self.current.borrow().is_some() && !self.is_degraded()
    }

    pub(super) fn record_success(&self) {
        if self.degraded.load(Ordering::Relaxed) {
            self.available();
            self.recovery.notify_one();
        }
        if self.refusing.load(Ordering::Relaxed) && self.refusing.swap(false, Ordering::Relaxed) {
            self.refusal_log.lock().accepted();
        }
    }

    /// Records that an operation was not answered in time.
    pub(super) fn record_timeout(&self, connection: u64) {
        if self.is_replaced(connection) {
            return;
        }
        self.unavailable(Instant::now().checked_sub(SCRIPT_TIMEOUT));
        self.replace(connection);
    }

    /// Since when Redis executes nothing.
    pub(super) fn unavailable_since(&self) -> Option<Instant> {
        *self.unavailable_since.lock()
    }

    fn unavailable(&self, since: Option<Instant>) {
        self.degraded.store(true, Ordering::Relaxed);
        let since = since.unwrap_or_else(Instant::now);
        self.unavailable_since.lock().get_or_insert(since);
    }

    fn available(&self) {
        *self.unavailable_since.lock() = None;
        self.degraded.store(false, Ordering::Relaxed);
    }

    /// Whether there is a connection that no operation has reported as failed.
    pub(super) fn has_working_connection(&self) -> bool {
        self.is_working(self.current.borrow().as_ref())
    }

    /// The connection that no operation has reported as failed.
    pub(super) fn working_connection(&self) -> Option<MultiplexedConnection> {
        let current = self.current.borrow();
        let (_, connection) = current.as_ref().filter(|current| self.is_working(Some(current)))?;
        Some(connection.clone())
    }

    /// Waits for such a connection.
    pub(super) async fn until_connected(&self) {
        let mut current = self.current.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = current.wait_for(|current| self.is_working(current.as_ref())).await;
    }

    /// Whether a later connection is in use.
    fn is_replaced(&self, connection: u64) -> bool {
        self.current.borrow().as_ref().is_some_and(|(number, _)| *number > connection)
    }

    fn is_working(&self, current: Option<&Numbered>) -> bool {
        current.is_some_and(|(number, _)| *number > self.failed.load(Ordering::Relaxed))
    }

    /// Records that an operation failed, and returns why.
    pub(super) fn record_error(&self, connection: u64, error: &RedisError) -> CacheError {
        let cause = CacheError::of(error);
        if self.is_replaced(connection) {
            return cause;
        }
        match cause.recovery() {
            Recovery::ByItself => self.unavailable(None),
            Recovery::ByOperator => self.degraded.store(true, Ordering::Relaxed),
        }
        let Some(refusal) = cause.refusal() else {
            if concerns_connection(error) {
                self.replace(connection);
            }
            return cause;
        };
        self.metrics.cache.refused(refusal);
        match refusal.recovery() {
            // Another connection may do better, for example one to the new primary after a failover.
            Recovery::ByItself => {
                *self.unusable.lock() = Some((connection, refusal));
                self.replace(connection);
            }
            Recovery::ByOperator => {
                self.refusing.store(true, Ordering::Relaxed);
                self.refusal_log.lock().refused(refusal);
            }
        }
        cause
    }

    /// Records that the server is well but does not execute operations of one slot for a moment.
    pub(super) fn record_refused_slot(&self, refusal: Refusal) {
        self.metrics.cache.refused(refusal);
        self.refresh.notify_one();
    }

    fn replace(&self, connection: u64) {
        self.failed.fetch_max(connection, Ordering::Relaxed);
        self.failure.notify_one();
        self.refresh.notify_one();
    }

    /// Runs the deferred scripts of this server, at most this long. Returns whether Redis wrote anything.
    async fn run_deferred(&self, on: &MultiplexedConnection, most: Option<Duration>) -> bool {
        self.deferred.run(on, &self.owns, most.map(|most| Instant::now() + most)).await
    }

    /// Waits until an operation reports this connection, or a later one, as failed.
    async fn failed(&self, connection: u64) {
        while self.failed.load(Ordering::Relaxed) < connection {
            self.failure.notified().await;
        }
    }
}

/// Whether another connection might do better after an error that is not Redis' answer.
fn concerns_connection(error: &RedisError) -> bool {
    // The answer of these arrived whole, so the connection works.
    !matches!(
        error.kind(),
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension | ErrorKind::Client
    )
}

pub(super) struct Keeper {
    connector: Connector,
    state: Arc<ConnectionState>,
    backoff: Backoff,
    login_wait: LoginWait,
    log: AvailabilityLog,
    /// Redis answered that it is unusable, as a read-only replica does, and has written nothing since; or it
    /// answers too late.
    unusable: bool,
}

impl Keeper {
    pub(super) fn new(connector: Connector, state: Arc<ConnectionState>) -> Self {
        let backoff = Backoff::between(SHORTEST_DELAY, LONGEST_DELAY);
        let log =
            AvailabilityLog::new(connector.node().map(ToString::to_string), connector.files());
        let login_wait = LoginWait::new();
        Self { connector, state, backoff, login_wait, log, unusable: false }
    }

    /// Connects, offers the connection until it fails, and starts over. Never returns.
    pub(super) async fn run(mut self) {
        for number in 1.. {
            let connection = self.connect().await;
            if number > 1 {
                self.state.metrics.cache.reconnected();
            }
            self.offer(number, &connection).await;
            self.until_failed(number, &connection).await;
            self.withdraw(number, connection).await;
        }
    }

    async fn connect(&mut self) -> Connection {
        loop {
            match try_connect(&mut self.connector).await {
                Ok(connection) => {
                    self.login_wait.reset();
                    return connection;
                }
                Err(error) => {
                    if let Some(refusal) = error.refusal() {
                        self.state.metrics.cache.refused(refusal);
                    }
                    self.log.unavailable(&error);
                    self.state.refresh.notify_one();
                    // A sentinel that refuses the login waits alone: the others may be back sooner.
                    if error.refusal() == Some(Refusal::NoAuth) {
                        let changed = self.connector.until_urls_changed();
                        let _ = timeout(self.login_wait.next_delay(), changed).await;
                    } else {
                        sleep(self.backoff.next_delay()).await;
                    }
                }
            }
        }
    }

    async fn offer(&mut self, number: u64, connection: &MultiplexedConnection) {
        // Not all, if there are thousands: requests wait for the connection, and send those of their own keys first.
        self.unusable &= !self.state.run_deferred(connection, Some(SCRIPT_TIMEOUT)).await;
        // One that is connected but too slow for scripts does not end the time that requests wait.
        self.unusable |= ping(connection, SCRIPT_TIMEOUT).await == Err(CacheError::Timeout);
        if !self.unusable {
            self.backoff.reset();
            self.state.available();
        }
        self.state.current.send_replace(Some((number, connection.clone())));
        self.state.has_work.notify_one();
        if !self.unusable {
            self.log.available();
        }
    }

    /// Waits until an operation or a PING fails.
    async fn until_failed(&mut self, number: u64, connection: &MultiplexedConnection) {
        let state = Arc::clone(&self.state);
        let mut unanswered = pin!(until_ping_fails(connection, &state));
        let mut moved = pin!(self.connector.until_moved());
        loop {
            tokio::select! {
                () = state.failed(number) => return,
                () = &mut unanswered => return,
                () = &mut moved => {
                    tracing::info!("the sentinels name another Redis primary: reconnecting");
                    return;
                }
                () = state.recovery.notified(), if self.unusable => {
                    // The notification may stem from before Redis called itself unusable.
                    self.unusable = state.is_degraded();
                    if !self.unusable {
                        self.log.available();
                    }
                }
            }
        }
    }

    async fn withdraw(&mut self, number: u64, connection: Connection) {
        self.state.unavailable(None);
        self.state.current.send_replace(None);
        self.state.deferred.repeat_recent(&self.state.owns);
        // Returned to the pool, it would cost the next checkout a PING to find out that it failed.
        drop(Connection::take(connection));
        tracing::debug!("Redis connection dropped: reconnecting");
        let unusable = self.state.unusable.lock().take();
        if let Some((_, refusal)) = unusable.filter(|(refused, _)| *refused == number) {
            self.unusable = true;
            self.log.unavailable(&CacheError::Refused(refusal));
        }
        if self.unusable {
            sleep(self.backoff.next_delay()).await;
        }
    }
}

async fn try_connect(connector: &mut Connector) -> Result<Connection, CacheError> {
    let mut connection = connector.connect().await?;
    match timeout(CONNECT_TIMEOUT, scripts::load(&mut connection)).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(error)) => Err(CacheError::of(&error)),
        Err(_) => Err(CacheError::Timeout),
    }
}

async fn ping(connection: &MultiplexedConnection, limit: Duration) -> Result<(), CacheError> {
    let ping = redis::cmd("PING");
    match timeout(limit, ping.query_async(&mut connection.clone())).await {
        Ok(answer) => answer.map_err(|error| CacheError::of(&error)),
        Err(_) => Err(CacheError::Timeout),
    }
}

/// Sends PINGs until one fails, and retries the scripts that Redis refused before.
///
/// A refused PING is an answer, too: Redis refuses it with MISCONF, and with NOPERM to a user without
/// `+ping`.
async fn until_ping_fails(connection: &MultiplexedConnection, state: &ConnectionState) {
    let mut next_ping = Instant::now() + PING_INTERVAL;
    loop {
        tokio::select! {
            () = state.has_work.notified() => {}
            () = sleep_until(next_ping) => {
                next_ping = Instant::now() + PING_INTERVAL;
                let answer = ping(connection, CONNECT_TIMEOUT).await;
                if answer.is_err_and(|error| error.recovery() == Recovery::ByItself) {
                    return;
                }
            }
        }
        if state.run_deferred(connection, None).await {
            state.record_success();
        }
    }
}
