//! The Redis connection that all requests share.
//!
//! deadpool-redis 0.23 sends a PING at each checkout (deadpool-rs/deadpool#307), which would cost each
//! operation a second round trip. So one connection stays checked out, and all requests pipeline their
//! commands on it. While it is down, operations fail at once and the keeper reconnects: an unresponsive
//! Redis costs the requests in flight one time-out, and later requests nothing.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use deadpool_redis::{
    Manager, Pool as Deadpool, Runtime,
    redis::{AsyncConnectionConfig, FromRedisValue, RedisError, ScriptInvocation},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection_health::ConnectionHealth,
    deferred::DeferredScripts,
    error::{CacheError, describe},
    keeper::{CONNECT_TIMEOUT, Keeper, Numbered},
    scripts::SCRIPT_TIMEOUT,
};
use crate::telemetry::metrics::Metrics;

pub(super) struct Pool {
    current: watch::Receiver<Option<Numbered>>,
    health: Arc<ConnectionHealth>,
    deferred: Arc<DeferredScripts>,
    _keeper: AbortOnDropHandle<()>,
    #[cfg(test)]
    fault: parking_lot::Mutex<Option<Fault>>,
}

/// How a test makes the next operation fail.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The script never reaches Redis.
    ScriptLost,
    /// Redis runs the script, and its answer is lost.
    AnswerLost,
}

impl Pool {
    /// Starts the keeper, and returns before it has connected.
    pub(super) fn new(url: &SecretString, metrics: Arc<Metrics>) -> Result<Self, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            // redis 1.x limits each answer to 500 ms by default (redis-rs/redis-rs#1686). `run` sets a
            // shorter limit, and a second timer per operation would be wasted.
            .set_response_timeout(None);
        let manager = Manager::new_with_config(url.expose_secret(), config)?;
        let pool = Deadpool::builder(manager)
            .max_size(1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(SCRIPT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            // Fails only where time-outs are set without a runtime.
            .map_err(|error| RedisError::from(io::Error::other(error.to_string())))?;
        let (sender, current) = watch::channel(None);
        let health = Arc::new(ConnectionHealth::default());
        let deferred = Arc::new(DeferredScripts::default());
        let keeper = Keeper::new(pool, sender, Arc::clone(&health), Arc::clone(&deferred), metrics);
        Ok(Self {
            current,
            health,
            deferred,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
            #[cfg(test)]
            fault: parking_lot::Mutex::default(),
        })
    }

    /// Whether there is a connection, and the last operation succeeded.
    pub(super) fn is_available(&self) -> bool {
        self.current.borrow().is_some() && !self.health.is_degraded()
    }

    /// Waits until there is a connection, at most for `limit`.
    pub(super) async fn wait_connected(&self, limit: Duration) {
        let mut current = self.current.clone();
        // A time-out is no error: the caller goes on without Redis.
        let _ = timeout(limit, current.wait_for(Option::is_some)).await;
    }

    /// Queues a script to run once Redis is available again, and to retry until `until` if refused.
    pub(super) fn defer(
        &self,
        until: SystemTime,
        build: impl Fn() -> ScriptInvocation<'static> + Send + 'static,
    ) {
        self.deferred.push(until, build);
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, CacheError> {
        let current = self.current.borrow().clone();
        let (number, mut connection) = current.ok_or(CacheError::Unavailable)?;
        #[cfg(test)]
        if let Some(fault) = self.take_fault() {
            if fault == Fault::AnswerLost {
                let answer = script.invoke_async::<deadpool_redis::redis::Value>(&mut connection);
                answer.await.unwrap();
            }
            return Err(CacheError::Timeout);
        }
        match timeout(SCRIPT_TIMEOUT, script.invoke_async(&mut connection)).await {
            Ok(Ok(value)) => {
                self.health.record_success();
                Ok(value)
            }
            Ok(Err(error)) => {
                self.health.record_error(number, &error);
                Err(CacheError::Failed(describe(&error)))
            }
            Err(_) => {
                self.health.record_timeout(number);
                Err(CacheError::Timeout)
            }
        }
    }
}

#[cfg(test)]
impl Pool {
    /// Makes the next operation fail.
    pub(super) fn inject(&self, fault: Fault) {
        *self.fault.lock() = Some(fault);
    }

    /// A function, so that the guard does not live across an `.await` in `run`.
    fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().take()
    }

    /// Runs the deferred scripts, as the keeper does after a reconnect.
    pub(super) async fn run_deferred(&self) {
        let (_, connection) = self.current.borrow().clone().unwrap();
        self.deferred.run(&connection).await;
    }
}
