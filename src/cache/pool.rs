//! The way to Redis: one pipelined connection out of the pool, replaced when it fails.
//!
//! Checking a connection out costs a round trip, since the pool asks Redis whether it still lives.
//! A request should not wait for that, so one connection stays checked out and all requests share
//! it: Redis' protocol lets commands follow each other without waiting for answers. While there is no
//! good connection, operations fail at once and a keeper works on the next one: a sick Redis costs
//! whoever meets it first one deadline, and nobody after.

use std::{
    error::Error,
    fmt, io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use deadpool_redis::{
    Connection, Manager, Pool as Deadpool, Runtime,
    redis::{self, AsyncConnectionConfig, RedisError, aio::MultiplexedConnection},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{deferred::Deferred, scripts};
use crate::{
    retry::Backoff,
    telemetry::{
        log_limit::{LogLimit, Outage},
        metrics::Metrics,
    },
    tls,
};

static AWAY: LogLimit = LogLimit::new("Redis unavailable", 3);

/// Limit of one operation: two of them make the half second that a sick Redis may cost a request. Unit
/// tests are about other things, and must not fail where the machine is slow.
pub(super) const DEADLINE: Duration = Duration::from_millis(if cfg!(test) { 10_000 } else { 250 });
/// Limit of making a connection, name resolution and TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How often an idle connection is asked whether it lives.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Cause an operation brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheError {
    /// No connection at the moment.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// Redis, or the way to it, said no. Holds the kind of error only, no key and no value.
    Failed(String),
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => f.write_str("there is no connection to Redis"),
            Self::Timeout => f.write_str("Redis did not answer in time"),
            Self::Failed(kind) => write!(f, "Redis failed: {kind}"),
        }
    }
}

impl std::error::Error for CacheError {}

/// A connection and its number, by which an error tells which one it is about.
type Numbered = (u64, MultiplexedConnection);

pub(super) struct Pool {
    current: watch::Receiver<Option<Numbered>>,
    broken: Arc<Broken>,
    deferred: Arc<Deferred>,
    _keeper: AbortOnDropHandle<()>,
    #[cfg(test)]
    lost: std::sync::Mutex<Option<Lost>>,
}

/// How an operation fails, where a test wants it to.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It never reaches Redis.
    Call,
    /// Redis does it, and the answer does not arrive.
    Answer,
}

/// Where operations tell the keeper that a connection is of no use any more.
#[derive(Default)]
struct Broken {
    number: AtomicU64,
    told: Notify,
    /// The last operation failed.
    refused: AtomicBool,
    /// Told when an operation works again.
    well: Notify,
    /// What Redis said by which connection, where it is of no use itself, such as a read-only replica.
    useless: Mutex<Option<(u64, String)>>,
}

impl Pool {
    /// Starts the keeper. Needs no Redis yet.
    pub(super) fn new(url: &SecretString, metrics: Arc<Metrics>) -> Result<Self, RedisError> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_LIMIT))
            // Whoever asks sets a limit, and one timer is enough.
            .set_response_timeout(None);
        let manager = Manager::new_with_config(url.expose_secret(), limits)?;
        let pool = Deadpool::builder(manager)
            .max_size(1)
            .wait_timeout(Some(CONNECT_LIMIT))
            .create_timeout(Some(CONNECT_LIMIT))
            .recycle_timeout(Some(DEADLINE))
            .runtime(Runtime::Tokio1)
            .build()
            // Fails only where time-outs are set without a runtime, and there is one.
            .map_err(|error| RedisError::from(std::io::Error::other(error.to_string())))?;
        let (sender, current) = watch::channel(None);
        let broken = Arc::new(Broken::default());
        let deferred = Arc::new(Deferred::default());
        let keeper = keep(pool, sender, Arc::clone(&broken), Arc::clone(&deferred), metrics);
        let keeper = tokio::spawn(keeper);
        Ok(Self {
            current,
            broken,
            deferred,
            _keeper: AbortOnDropHandle::new(keeper),
            #[cfg(test)]
            lost: std::sync::Mutex::default(),
        })
    }

    /// Whether there is a connection, and it did what it was asked last.
    pub(super) fn is_available(&self) -> bool {
        self.current.borrow().is_some() && !self.broken.refused.load(Ordering::Relaxed)
    }

    /// Waits until there is a connection, for so long at most.
    pub(super) async fn wait_connected(&self, limit: Duration) {
        let mut current = self.current.clone();
        // Either way the caller goes on: without Redis, if need be.
        let _ = timeout(limit, current.wait_for(Option::is_some)).await;
    }

    /// Has a script run as soon as Redis is back. While Redis refuses it, it is tried again, until
    /// then.
    pub(super) fn defer(
        &self,
        until: SystemTime,
        script: impl Fn() -> redis::ScriptInvocation<'static> + Send + 'static,
    ) {
        self.deferred.push(until, script);
    }

    /// Runs a script.
    pub(super) async fn run<T: redis::FromRedisValue>(
        &self,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, CacheError> {
        let current = self.current.borrow().clone();
        let (number, mut connection) = current.ok_or(CacheError::Unavailable)?;
        #[cfg(test)]
        let lost = self.lost.lock().unwrap().take();
        #[cfg(test)]
        if let Some(lost) = lost {
            if lost == Lost::Answer {
                script.invoke_async::<redis::Value>(&mut connection).await.unwrap();
            }
            return Err(CacheError::Timeout);
        }
        let answer = timeout(DEADLINE, script.invoke_async(&mut connection)).await;
        if !matches!(answer, Ok(Ok(_))) {
            self.broken.refused.store(true, Ordering::Relaxed);
        }
        match answer {
            Ok(Ok(value)) => {
                self.broken.worked();
                Ok(value)
            }
            Ok(Err(error)) => {
                if is_about_the_connection(&error) {
                    if error.code().is_some() {
                        *self.broken.useless() = Some((number, describe(&error)));
                    }
                    self.broken.tell(number);
                }
                Err(CacheError::Failed(describe(&error)))
            }
            Err(_) => {
                self.broken.tell(number);
                Err(CacheError::Timeout)
            }
        }
    }
}

#[cfg(test)]
impl Pool {
    /// The next operation fails.
    pub(super) fn lose(&self, lost: Lost) {
        *self.lost.lock().unwrap() = Some(lost);
    }

    /// As if Redis were back.
    pub(super) async fn back(&self) {
        let connection = self.current.borrow().clone().unwrap().1;
        self.deferred.run(&connection).await;
    }
}

impl Broken {
    /// Plain data, so a panic elsewhere does not spoil it.
    fn useless(&self) -> MutexGuard<'_, Option<(u64, String)>> {
        self.useless.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation has done what it should.
    fn worked(&self) {
        if self.refused.swap(false, Ordering::Relaxed) {
            self.well.notify_one();
        }
    }

    fn tell(&self, number: u64) {
        self.number.fetch_max(number, Ordering::Relaxed);
        self.told.notify_one();
    }

    async fn wait_for(&self, number: u64) {
        while self.number.load(Ordering::Relaxed) < number {
            self.told.notified().await;
        }
    }
}

/// Keeps one good connection on offer, for ever.
async fn keep(
    pool: Deadpool,
    offer: watch::Sender<Option<Numbered>>,
    broken: Arc<Broken>,
    deferred: Arc<Deferred>,
    metrics: Arc<Metrics>,
) {
    let mut delays = Backoff::between(Duration::from_millis(50), Duration::from_secs(1));
    let mut outage = Outage::new(&AWAY);
    // Redis was reached, but of no use, and has done nothing since.
    let mut useless = false;
    for number in 1.. {
        let connection = loop {
            match connect(&pool).await {
                Ok(connection) => break connection,
                Err(why) => {
                    away(&mut outage, &why);
                    sleep(delays.next_delay()).await;
                }
            }
        };
        if number > 1 {
            metrics.cache_reconnected();
        }
        useless &= !deferred.run(&connection).await;
        if !useless {
            delays.reset();
            broken.refused.store(false, Ordering::Relaxed);
        }
        offer.send_replace(Some((number, (*connection).clone())));
        if !useless {
            back(&mut outage);
        }
        let mut dead = pin!(until_dead((*connection).clone(), &deferred, &broken));
        loop {
            tokio::select! {
                () = broken.wait_for(number) => break,
                () = &mut dead => break,
                () = broken.well.notified(), if useless => {
                    // It may have been told of an earlier time.
                    useless = broken.refused.load(Ordering::Relaxed);
                    if !useless {
                        back(&mut outage);
                    }
                }
            }
        }
        offer.send_replace(None);
        // Out of the pool for good: the pool would only find out by asking it again.
        drop(Connection::take(connection));
        tracing::debug!("Redis connection dropped: reconnecting");
        let useless_by = broken.useless().take();
        // What comes late, by a former connection, says nothing of this one.
        if let Some((_, why)) = useless_by.filter(|(about, _)| *about == number) {
            useless = true;
            away(&mut outage, &why);
        }
        if useless {
            sleep(delays.next_delay()).await;
        }
    }
}

fn away(outage: &mut Outage, why: &str) {
    if outage.report_down() {
        tracing::warn!(error = why, "Redis unavailable: serving requests without the cache");
    }
}

fn back(outage: &mut Outage) {
    if outage.report_up() {
        tracing::info!("Redis available again: using the cache");
    }
}

async fn connect(pool: &Deadpool) -> Result<Connection, String> {
    let mut connection = pool.get().await.map_err(|error| match error {
        deadpool_redis::PoolError::Backend(error) => describe(&error),
        other => other.to_string(),
    })?;
    match timeout(CONNECT_LIMIT, scripts::load(&mut connection)).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Ends when the connection does not answer any more. What Redis has refused before is tried again.
async fn until_dead(mut connection: MultiplexedConnection, deferred: &Deferred, broken: &Broken) {
    let ping = redis::cmd("PING");
    loop {
        sleep(CHECK_EVERY).await;
        let alive = ping.query_async::<()>(&mut connection);
        if !matches!(timeout(CONNECT_LIMIT, alive).await, Ok(Ok(()))) {
            return;
        }
        if deferred.run(&connection).await {
            broken.worked();
        }
    }
}

/// Whether another connection might do better, such as one to the new primary after a failover.
fn is_about_the_connection(error: &RedisError) -> bool {
    use redis::{ErrorKind, ServerErrorKind};
    match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        ),
        // What Redis answered was read well, and is only not what it should be.
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension | ErrorKind::Client => false,
        _ => true,
    }
}

/// The kind of error, and the code Redis gave: never its text, which may quote what was sent.
pub(super) fn describe(error: &RedisError) -> String {
    if let Some(trouble) = tls::trouble(error) {
        return trouble.to_owned();
    }
    match (error.code(), error.is_timeout(), error.is_connection_refusal()) {
        (Some(code), ..) => code.to_owned(),
        (None, true, _) => "no answer in time".to_owned(),
        (None, _, true) => "connection refused".to_owned(),
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            "user or password refused".to_owned()
        }
        _ if error.kind() == redis::ErrorKind::Io => io_trouble(error),
        _ => format!("{:?}", error.kind()),
    }
}

/// What happened on the way, or before there was one.
fn io_trouble(error: &RedisError) -> String {
    let shared = error.source().and_then(|source| source.downcast_ref::<tls::Shared>());
    match shared.and_then(|shared| shared.downcast_ref::<io::Error>()) {
        Some(error) => tls::on_the_way(error),
        None => "TLS cannot be set up: can all be read that SSL_CERT_FILE and SSL_CERT_DIR name?"
            .to_owned(),
    }
}
