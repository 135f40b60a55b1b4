//! Asks the sentinels which server is the primary.

use std::{cmp::Reverse, time::Duration};

use deadpool_redis::{
    Connection,
    redis::{self, ErrorKind, RedisError, Value},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    dial::{Address, CONNECT_TIMEOUT, connect_to},
    dial_pace::DialPace,
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

/// Which address wins if the sentinels disagree evenly.
#[derive(Clone, Copy)]
pub(super) enum Tie<'a> {
    /// The one in use, if it is among them: a worker must not move to and fro.
    Prefer(Option<&'a Address>),
    /// Another than the one that the worker could not connect to.
    Avoid(&'a Address),
}

impl Tie<'_> {
    fn is_preferred(self, address: &Address) -> bool {
        match self {
            Self::Prefer(preferred) => preferred == Some(address),
            Self::Avoid(avoided) => avoided != address,
        }
    }
}

/// The address that most sentinels give. All are asked at once, so that one that is gone or wrong does not
/// hold up or mislead.
///
/// A sentinel that refuses the login is asked less and less often; the others are asked as before, although their
/// credentials may be the same: each sentinel has users of its own, and Redis locks no account.
pub(super) async fn find_primary(
    sentinels: &Sentinels,
    pace: &DialPace,
    tie: Tie<'_>,
) -> Result<Address, CacheError> {
    sentinels.nodes.look().await;
    let nodes = sentinels.nodes.current();
    let due = pace.due(&nodes, nodes.nodes().iter().map(Address::of).collect());
    let mut answers: FuturesUnordered<_> = FuturesUnordered::new();
    for node in nodes.nodes() {
        let address = Address::of(node);
        if due.contains(&address) {
            let asking = ask(node, &sentinels.service);
            answers.push(async move { (address, asking.await) });
        }
    }
    let mut votes = Vec::<Votes>::new();
    // Says more than that the others cannot be reached.
    let mut failure = pace.any_refuses_login().then_some((true, CacheError::SentinelLogin));
    let mut deadline = Instant::now() + CONNECT_TIMEOUT;
    while let Ok(Some((sentinel, answer))) = timeout_at(deadline, answers.next()).await {
        match answer {
            Ok(address) => {
                pace.answered(&sentinel);
                deadline = deadline.min(Instant::now() + OTHERS_LIMIT);
                if count(&mut votes, address) * 2 > nodes.nodes().len() {
                    break;
                }
            }
            Err(error) if error.1.is_refused_login() => {
                pace.login_refused(&sentinel);
                failure = Some(error);
            }
            // What a sentinel says is more useful than that another cannot be reached.
            Err(error) if failure.is_none() || error.0 => failure = Some(error),
            Err(_) => {}
        }
    }
    // The first of those with the most votes: the sort is stable.
    votes.sort_by_key(|votes| Reverse((votes.count, tie.is_preferred(&votes.address))));
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
pub(super) async fn until_moved(
    sentinels: &Sentinels,
    pace: &DialPace,
    address: &Address,
    interval: Duration,
) {
    loop {
        sleep(interval).await;
        let primary = find_primary(sentinels, pace, Tie::Prefer(Some(address))).await;
        // If no sentinel answers, the connection in use is still the best that is known.
        if primary.is_ok_and(|primary| primary != *address) {
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
        (Address::of(node), ask(node, service).await.map_err(|(_, error)| error))
    });
    futures_util::future::join_all(asking).await
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::config::{Watched, sentinel_nodes};

    /// A sentinel that answers each command with `reply`, and counts its connections.
    async fn sentinel(reply: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://:s3cret@{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(1..) = socket.read(&mut buffer).await {
                        let text = String::from_utf8_lossy(&buffer).into_owned();
                        let commands = text.lines().filter(|line| line.starts_with('*')).count();
                        let replies = match text.contains("GET-MASTER") {
                            true => reply.to_owned(),
                            false if reply.starts_with('-') => reply.repeat(commands),
                            false => "+OK\r\n".repeat(commands),
                        };
                        buffer.fill(0);
                        socket.write_all(replies.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (url, connections)
    }

    #[tokio::test]
    async fn sentinel_that_refuses_the_login_is_asked_less_and_less_often() {
        let primary = "*2\r\n$1\r\na\r\n$1\r\n7\r\n";
        let (good, _) = sentinel(primary).await;
        let (refusing, logins) = sentinel("-WRONGPASS invalid\r\n").await;
        let nodes = |text: &str| Watched::fixed(sentinel_nodes(text).unwrap());
        let service = "mymaster".to_owned();
        let pace = DialPace::default();
        let sentinels =
            Sentinels { nodes: nodes(&format!("{good},{refusing}")), service: service.clone() };
        for _ in 0..5 {
            let found = find_primary(&sentinels, &pace, Tie::Prefer(None)).await.unwrap();
            assert_eq!(found, Address { host: "a".to_owned(), port: 7 });
        }
        assert_eq!(logins.load(Ordering::Relaxed), 1);
        // A changed setting is tried at once.
        let alone = Sentinels { nodes: nodes(&refusing), service };
        for _ in 0..3 {
            let error = find_primary(&alone, &pace, Tie::Prefer(None)).await.unwrap_err();
            assert_eq!(error, CacheError::SentinelLogin);
        }
        assert_eq!(logins.load(Ordering::Relaxed), 2);
    }
}
