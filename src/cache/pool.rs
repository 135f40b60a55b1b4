//! The Redis connection that all requests share.
//!
//! deadpool-redis 0.23 sends a PING at each checkout (deadpool-rs/deadpool#307), which would cost each
//! operation a second round trip. So one connection stays checked out, and all requests pipeline their
//! commands on it. While it is down, operations fail at once and the keeper reconnects: an unresponsive
//! Redis costs the requests in flight one time-out, and later requests nothing.

use std::sync::Arc;

use deadpool_redis::redis::{FromRedisValue, RedisError, ScriptInvocation};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connector::Connector,
    error::CacheError,
    keeper::{CONNECT_TIMEOUT, ConnectionState, Keeper},
    scripts::SCRIPT_TIMEOUT,
};
use crate::{
    config::{RedisNodes, Watched},
    telemetry::metrics::Metrics,
};

pub(super) struct Pool {
    pub(super) state: Arc<ConnectionState>,
    _keeper: AbortOnDropHandle<()>,
    #[cfg(test)]
    pub(super) fault: parking_lot::Mutex<Option<InjectedFault>>,
}

/// How a test makes the next operation fail.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InjectedFault {
    /// The script never reaches Redis.
    ScriptLost,
    /// Redis runs the script, and its answer is lost.
    AnswerLost,
}

impl Pool {
    /// Starts the keeper, and returns before it has connected.
    pub(super) fn new(
        nodes: Watched<RedisNodes>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RedisError> {
        let connector = Connector::new(nodes, CONNECT_TIMEOUT)?;
        let state = Arc::new(ConnectionState::new(metrics));
        let keeper = Keeper::new(connector, Arc::clone(&state));
        Ok(Self {
            state,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
            #[cfg(test)]
            fault: parking_lot::Mutex::default(),
        })
    }

    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, CacheError> {
        let current = self.state.current.borrow().clone();
        let (number, mut connection) = current.ok_or(CacheError::Unavailable)?;
        #[cfg(test)]
        let fault = self.fault.lock().take();
        #[cfg(test)]
        if let Some(fault) = fault {
            if fault == InjectedFault::AnswerLost {
                let answer = script.invoke_async::<deadpool_redis::redis::Value>(&mut connection);
                answer.await.unwrap();
            }
            return Err(CacheError::Timeout);
        }
        match timeout(SCRIPT_TIMEOUT, script.invoke_async(&mut connection)).await {
            Ok(Ok(value)) => {
                self.state.record_success();
                Ok(value)
            }
            Ok(Err(error)) => Err(self.state.record_error(number, &error)),
            Err(_) => {
                self.state.record_timeout(number);
                Err(CacheError::Timeout)
            }
        }
    }
}
