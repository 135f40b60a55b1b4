//! One Redis server that the worker writes to: its connection, and whether it is available.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_redis::redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connector::Connector,
    dial::Address,
    error::CacheError,
    keeper::{ConnectionState, Keeper},
    log,
    refusal::Refusal,
    scripts::{SCRIPT_TIMEOUT, ScriptCall},
};

/// A server with its keeper.
pub(super) struct CacheNode {
    pub(super) state: Arc<ConnectionState>,
    /// Where it is, if it is a node of a cluster: it may then redirect.
    pub(super) address: Option<Address>,
    /// The latest connection whose server has refused a script with keys in two slots. Another connection may lead to
    /// another server, which is asked again.
    pub(super) one_slot: AtomicU64,
    _keeper: Option<AbortOnDropHandle<()>>,
    #[cfg(test)]
    pub(super) fault: parking_lot::Mutex<Option<(usize, InjectedFault)>>,
}

/// How a test makes an operation fail: the next one, or that after so many.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InjectedFault {
    /// The script never reaches Redis.
    ScriptLost,
    /// Redis runs the script, and its answer is lost.
    AnswerLost,
}

/// Why a script gave no result.
pub(super) enum Failure {
    /// The slot of its keys is on this node.
    Moved(Address),
    /// The keys are on this node already, though the slot is not.
    Ask(Address),
    Error(CacheError),
}

impl CacheNode {
    /// Starts the keeper, and returns before it has connected.
    pub(super) fn start(connector: Connector, state: ConnectionState) -> Self {
        let mut node = Self::without_server(state);
        node.address = connector.node().cloned();
        let keeper = Keeper::new(connector, Arc::clone(&node.state));
        node._keeper = Some(AbortOnDropHandle::new(tokio::spawn(keeper.run())));
        node
    }

    /// Stands for a server that is not known yet.
    pub(super) fn without_server(state: ConnectionState) -> Self {
        Self {
            state: Arc::new(state),
            address: None,
            one_slot: AtomicU64::default(),
            _keeper: None,
            #[cfg(test)]
            fault: parking_lot::Mutex::default(),
        }
    }

    /// Runs a script on this server.
    ///
    /// `asking`: although the slot of its keys is elsewhere. `limit`: if the script has less time than others, so that
    /// a time-out says nothing about the server.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptCall,
        asking: bool,
        limit: Option<Duration>,
    ) -> Result<T, Failure> {
        let answer = self.send(script, asking, limit).await?;
        answer.map_err(|(number, error)| self.failure(number, &error))
    }

    /// Whether the server, as far as it is known, executes scripts with keys in two slots: it does unless it is a node
    /// of a Redis Cluster, or a proxy of one.
    pub(super) fn takes_two_slots(&self) -> bool {
        let current = self.state.current.borrow();
        let number = current.as_ref().map(|(number, _)| *number);
        number.is_some_and(|number| number > self.one_slot.load(Ordering::Relaxed))
    }

    /// Runs a script with keys in two slots. `None`: the server executes no such script, nor has it this one.
    pub(super) async fn run_over_two_slots<T: FromRedisValue>(
        &self,
        script: &ScriptCall,
    ) -> Result<Option<T>, Failure> {
        match self.send(script, false, None).await? {
            Ok(value) => Ok(Some(value)),
            Err((number, error)) if Refusal::find(&error) == Some(Refusal::CrossSlot) => {
                if self.one_slot.fetch_max(number, Ordering::Relaxed) < number {
                    log::one_slot();
                }
                Ok(None)
            }
            Err((number, error)) => Err(self.failure(number, &error)),
        }
    }

    /// Sends a script. Returns its value, or Redis' error with the number of the connection.
    async fn send<T: FromRedisValue>(
        &self,
        script: &ScriptCall,
        asking: bool,
        limit: Option<Duration>,
    ) -> Result<Result<T, (u64, RedisError)>, Failure> {
        let current = self.state.current.borrow().clone();
        let (number, mut connection) = current.ok_or(Failure::Error(CacheError::Unavailable))?;
        #[cfg(test)]
        let fault = {
            let mut next = self.fault.lock();
            match next.take() {
                Some((0, fault)) => Some(fault),
                Some((after, fault)) => {
                    *next = Some((after - 1, fault));
                    None
                }
                None => None,
            }
        };
        #[cfg(test)]
        if let Some(fault) = fault {
            if fault == InjectedFault::AnswerLost {
                script.run::<Value>(&mut connection).await.unwrap();
            }
            return Err(Failure::Error(CacheError::Timeout));
        }
        let answer = async {
            if asking {
                script.run(&mut Asking(connection)).await
            } else {
                script.run(&mut connection).await
            }
        };
        match timeout(limit.unwrap_or(SCRIPT_TIMEOUT), answer).await {
            Ok(Ok(value)) => {
                self.state.record_success();
                Ok(Ok(value))
            }
            Ok(Err(error)) => Ok(Err((number, error))),
            Err(_) => {
                if limit.is_none() {
                    self.state.record_timeout(number);
                }
                Err(Failure::Error(CacheError::Timeout))
            }
        }
    }

    fn failure(&self, number: u64, error: &RedisError) -> Failure {
        if let Some(address) = &self.address {
            let to = || redirection(error, address);
            let redirected = match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved) => to().map(Failure::Moved),
                ErrorKind::Server(ServerErrorKind::Ask) => to().map(Failure::Ask),
                _ => None,
            };
            if let Some(redirected) = redirected {
                return redirected;
            }
            // About one slot: the node is well. A redirection to an unknown host, or inside a script, cannot be
            // followed, but ends by itself.
            if let Some(refusal @ (Refusal::TryAgain | Refusal::Moved | Refusal::Ask)) =
                Refusal::find(error)
            {
                self.state.record_refused_slot(refusal);
                return Failure::Error(CacheError::Refused(Refusal::TryAgain));
            }
        }
        Failure::Error(self.state.record_error(number, error))
    }
}

/// Where `MOVED 3999 host:port` or `ASK …` leads to. A node that knows no host of its own leaves it out.
fn redirection(error: &RedisError, from: &Address) -> Option<Address> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let host = if host.is_empty() { from.host.clone() } else { host.to_owned() };
    (host != "?").then_some(Address { host, port: port.parse().ok()? })
}

/// Sends `ASKING` right before each command.
struct Asking(MultiplexedConnection);

impl ConnectionLike for Asking {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut both = Pipeline::with_capacity(2);
            both.cmd("ASKING").add_command(command.clone());
            let mut answers = self.0.req_packed_commands(&both, 1, 1).await?;
            answers.pop().unwrap_or(Value::Nil).extract_error()
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        // No script is sent in a pipeline.
        self.0.req_packed_commands(commands, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.0.get_db()
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::parse_redis_value;
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        cache::{deferred::DeferredScripts, refusal::Recovery},
        telemetry::metrics::Metrics,
    };

    /// What a node of a cluster makes of this reply.
    fn failure(reply: &str) -> Failure {
        let deferred = Arc::new(DeferredScripts::default());
        let owns = Box::new(|_: &str| true);
        let state = ConnectionState::new(Metrics::new(), deferred, Arc::new(Notify::new()), owns);
        let mut node = CacheNode::without_server(state);
        node.address = Some(Address { host: "h".to_owned(), port: 1 });
        let value = parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        node.failure(1, &value.extract_error().unwrap_err())
    }

    #[test]
    fn redirection_that_cannot_be_followed_is_waited_for() {
        let is =
            |host: &str, address: &Address| *address == Address { host: host.to_owned(), port: 7 };
        assert!(matches!(failure("MOVED 1 a:7"), Failure::Moved(to) if is("a", &to)));
        assert!(matches!(failure("MOVED 1 :7"), Failure::Moved(to) if is("h", &to)));
        assert!(matches!(failure("ASK 1 a:7"), Failure::Ask(to) if is("a", &to)));
        let wrapped = "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: ";
        for reply in [
            "MOVED 1 ?:7",
            "ASK 1 ?:7",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            &format!("{wrapped}-MOVED 1 a:7"),
            &format!("{wrapped}-ASK 1 a:7"),
            "ERR Script attempted to access a non local key in a cluster node script: 0",
        ] {
            let Failure::Error(error) = failure(reply) else { panic!("{reply}: redirected") };
            assert_eq!(error.recovery(), Recovery::ByItself, "{reply}");
        }
    }
}
