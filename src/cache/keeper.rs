//! The task that keeps one good Redis connection on offer.

use std::{pin::pin, sync::Arc, time::Duration};

use deadpool_redis::{
    Connection, Pool as Deadpool, PoolError,
    redis::{self, aio::MultiplexedConnection},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    connection_health::ConnectionHealth,
    deferred::DeferredScripts,
    error::describe,
    log::{self, AvailabilityLog},
    scripts,
};
use crate::{retry::Backoff, telemetry::metrics::Metrics};

/// Limit of connecting, with name resolution and TLS; also of a PING that checks a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the keeper sends a PING on a connection.
///
/// redis 1.8 reports a closed connection only to the next command, or as a RESP3 push, and this
/// connection speaks RESP2 (redis-rs/redis-rs#1096). It reports a half-open connection only once TCP
/// gives up, after a minute or more (redis-rs/redis-rs#1513).
const PING_INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// A connection, and the number by which [`ConnectionHealth`] refers to it.
pub(super) type Numbered = (u64, MultiplexedConnection);

pub(super) struct Keeper {
    pool: Deadpool,
    current: watch::Sender<Option<Numbered>>,
    health: Arc<ConnectionHealth>,
    deferred: Arc<DeferredScripts>,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    log: AvailabilityLog,
    /// Redis answered that it is unusable, as a read-only replica does, and has written nothing since.
    unusable: bool,
}

impl Keeper {
    pub(super) fn new(
        pool: Deadpool,
        current: watch::Sender<Option<Numbered>>,
        health: Arc<ConnectionHealth>,
        deferred: Arc<DeferredScripts>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let backoff = Backoff::between(SHORTEST_DELAY, LONGEST_DELAY);
        let log = AvailabilityLog::new();
        Self { pool, current, health, deferred, metrics, backoff, log, unusable: false }
    }

    /// Connects, offers the connection until it fails, and starts over. Never returns.
    pub(super) async fn run(mut self) {
        for number in 1.. {
            let connection = self.connect().await;
            if number > 1 {
                self.metrics.cache.reconnected();
            }
            self.offer(number, &connection).await;
            self.until_failed(number, &connection).await;
            self.withdraw(number, connection).await;
        }
    }

    async fn connect(&mut self) -> Connection {
        loop {
            match try_connect(&self.pool).await {
                Ok(connection) => return connection,
                Err(error) => {
                    self.log.unavailable(&error);
                    sleep(self.backoff.next_delay()).await;
                }
            }
        }
    }

    async fn offer(&mut self, number: u64, connection: &MultiplexedConnection) {
        self.unusable &= !self.deferred.run(connection).await;
        if !self.unusable {
            self.backoff.reset();
            self.health.reset();
        }
        self.current.send_replace(Some((number, connection.clone())));
        if !self.unusable {
            self.log.available();
        }
    }

    /// Waits until an operation or a PING fails.
    async fn until_failed(&mut self, number: u64, connection: &MultiplexedConnection) {
        let health = Arc::clone(&self.health);
        let deferred = Arc::clone(&self.deferred);
        let mut unanswered = pin!(until_ping_fails(connection.clone(), &deferred, &health));
        loop {
            tokio::select! {
                () = health.failed(number) => return,
                () = &mut unanswered => return,
                () = health.recovered(), if self.unusable => {
                    // The notification may stem from before Redis called itself unusable.
                    self.unusable = health.is_degraded();
                    if !self.unusable {
                        self.log.available();
                    }
                }
            }
        }
    }

    async fn withdraw(&mut self, number: u64, connection: Connection) {
        self.current.send_replace(None);
        // Returned to the pool, it would cost the next checkout a PING to find out that it failed.
        drop(Connection::take(connection));
        log::connection_dropped();
        if let Some(code) = self.health.take_unusable(number) {
            self.unusable = true;
            self.log.unavailable(&code);
        }
        if self.unusable {
            sleep(self.backoff.next_delay()).await;
        }
    }
}

async fn try_connect(pool: &Deadpool) -> Result<Connection, String> {
    let mut connection = pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => describe(&error),
        other => other.to_string(),
    })?;
    match timeout(CONNECT_TIMEOUT, scripts::load(&mut connection)).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// Sends PINGs until one fails, and retries the scripts that Redis refused before.
async fn until_ping_fails(
    mut connection: MultiplexedConnection,
    deferred: &DeferredScripts,
    health: &ConnectionHealth,
) {
    let ping = redis::cmd("PING");
    loop {
        sleep(PING_INTERVAL).await;
        let answer = ping.query_async::<()>(&mut connection);
        if !matches!(timeout(CONNECT_TIMEOUT, answer).await, Ok(Ok(()))) {
            return;
        }
        if deferred.run(&connection).await {
            health.record_success();
        }
    }
}
