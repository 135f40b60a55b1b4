//! Asks the sentinels which server is the primary.

use std::time::Duration;

use deadpool_redis::{
    Connection,
    redis::{self, ErrorKind, RedisError, Value},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    dial::{Address, CONNECT_TIMEOUT, connect_to},
    error::CacheError,
    refusal::Refusal,
};
use crate::config::{RedisNode, RedisNodes, Sentinels};

/// How long the other sentinels may take once one has answered.
const OTHERS_LIMIT: Duration = Duration::from_millis(300);

/// One answer of the sentinels, and how many gave it.
struct Votes {
    address: Address,
    count: usize,
}

/// The address that most sentinels give. All are asked at once, so that one that is gone or wrong does not
/// hold up or mislead.
pub(super) async fn find_primary(sentinels: &Sentinels) -> Result<Address, CacheError> {
    sentinels.nodes.look().await;
    let nodes = sentinels.nodes.current();
    let mut answers: FuturesUnordered<_> =
        nodes.nodes().iter().map(|node| ask(node, &sentinels.service)).collect();
    let mut votes = Vec::<Votes>::new();
    let mut failure = None;
    let mut deadline = Instant::now() + CONNECT_TIMEOUT;
    while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
        match answer {
            Ok(address) => {
                deadline = deadline.min(Instant::now() + OTHERS_LIMIT);
                if count(&mut votes, address) * 2 > nodes.nodes().len() {
                    break;
                }
            }
            // What a sentinel says is more useful than that another cannot be reached.
            Err(error) if failure.is_none() || error.0 => failure = Some(error),
            Err(_) => {}
        }
    }
    // The first of those with the most votes: the sort is stable.
    votes.sort_by_key(|votes| std::cmp::Reverse(votes.count));
    let winner = votes.into_iter().next().map(|votes| votes.address);
    winner.ok_or_else(|| failure.map_or_else(unreachable, |(_, error)| error))
}

fn count(votes: &mut Vec<Votes>, address: Address) -> usize {
    if let Some(known) = votes.iter_mut().find(|votes| votes.address == address) {
        known.count += 1;
        return known.count;
    }
    votes.push(Votes { address, count: 1 });
    1
}

/// Waits until the sentinels call another server than this one the primary. Asks them this often.
pub(super) async fn until_moved(sentinels: &Sentinels, address: &Address, interval: Duration) {
    loop {
        sleep(interval).await;
        // If no sentinel answers, the connection in use is still the best that is known.
        if find_primary(sentinels).await.is_ok_and(|primary| primary != *address) {
            return;
        }
    }
}

/// Refuses a server that is a replica: a sentinel may be wrong, or late.
pub(super) async fn require_primary(connection: &mut Connection) -> Result<(), CacheError> {
    let role = redis::cmd("ROLE");
    let role = timeout(CONNECT_TIMEOUT, role.query_async::<Vec<Value>>(connection)).await;
    match role.map_err(|_| CacheError::Timeout)? {
        Ok(role) if matches!(&role[..], [Value::BulkString(name), ..] if name == b"slave") => {
            Err(CacheError::Refused(Refusal::ReadOnly))
        }
        // A user without permission for ROLE is no reason: a replica refuses the first script anyway.
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some() => Ok(()),
        Err(error) => Err(CacheError::of(&error)),
    }
}

/// Asks one sentinel. The error says whether it is the sentinel's own answer.
async fn ask(sentinel: &RedisNode, service: &str) -> Result<Address, (bool, CacheError)> {
    let asking = async {
        let mut connection = connect_to(sentinel).await.map_err(login_error)?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        let answer = question.query_async::<Option<(String, u16)>>(&mut connection).await;
        let (host, port) = answer.map_err(|error| answer_error(&error))?.ok_or_else(|| {
            let why = "the sentinels know no primary by the name in HANDOFF_REDIS_SENTINEL_SERVICE";
            (true, CacheError::Failed(why.to_owned()))
        })?;
        Ok(Address { host, port })
    };
    timeout(CONNECT_TIMEOUT, asking).await.unwrap_or_else(|_| Err((false, unreachable())))
}

fn unreachable() -> CacheError {
    CacheError::Failed("no sentinel answers: check HANDOFF_REDIS_SENTINELS".to_owned())
}

fn login_error(error: CacheError) -> (bool, CacheError) {
    match error.refusal() {
        Some(Refusal::NoAuth) => (true, CacheError::SentinelLogin),
        Some(_) => (true, error),
        None => {
            (false, CacheError::Failed(format!("no sentinel can be reached: {}", error.cause())))
        }
    }
}

fn answer_error(error: &RedisError) -> (bool, CacheError) {
    let error = match CacheError::of(error) {
        CacheError::Refused(Refusal::NoAuth) => CacheError::SentinelLogin,
        CacheError::Refused(Refusal::NoPerm) => CacheError::Failed(
            "a sentinel's user may not run SENTINEL GET-MASTER-ADDR-BY-NAME: grant \
             +sentinel|get-master-addr-by-name to the user in HANDOFF_REDIS_SENTINELS"
                .to_owned(),
        ),
        CacheError::Refused(Refusal::Other) if error.kind() != ErrorKind::Io => CacheError::Failed(
            "HANDOFF_REDIS_SENTINELS leads to a server that is no sentinel: sentinels listen on port 26379"
                .to_owned(),
        ),
        other => other,
    };
    (error != CacheError::Timeout, error)
}
/// What each sentinel answers, for `handoff doctor`.
pub(super) async fn opinions(
    nodes: &RedisNodes,
    service: &str,
) -> Vec<(Address, Result<Address, CacheError>)> {
    let asking = nodes.nodes().iter().map(|node| async move {
        let (host, port) = node.host_and_port();
        let sentinel = Address { host: host.to_owned(), port };
        (sentinel, ask(node, service).await.map_err(|(_, error)| error))
    });
    futures_util::future::join_all(asking).await
}
