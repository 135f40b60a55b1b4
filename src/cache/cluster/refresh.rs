//! The task that reads the slots of a Redis Cluster again whenever they may have changed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use deadpool_redis::redis::{self, RedisError, Value, aio::ConnectionLike};
use futures_util::{StreamExt, stream::FuturesUnordered};
use rand::seq::SliceRandom;
use tokio::time::{sleep, timeout};

use super::{
    shared::Shared,
    slots::{SlotRange, parse_slots},
};
use crate::{
    cache::{
        dial::{Address, connect_to},
        dial_pace::DialPace,
        error::CacheError,
        log::AvailabilityLog,
        node::CacheNode,
        refusal::{Recovery, Refusal},
        scripts::SCRIPT_TIMEOUT,
    },
    config::RedisNode,
    retry::LoginWait,
};

const NO_CLUSTER: &str =
    "this server is not part of a Redis Cluster: set HANDOFF_REDIS_MODE=single";
/// How often the slots are read although nothing seems to have changed.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while a node is down: its replica is about to take over.
const INTERVAL_IN_TROUBLE: Duration = Duration::from_millis(200);
/// The shortest time between two readings: while slots move, each MOVED asks for one.
const PACE: Duration = Duration::from_millis(50);
/// How long one node may take before the next is dialled as well.
const STAGGER: Duration = Duration::from_millis(30);
/// How many addresses of replicas are remembered, for the case that all primaries are gone.
const REMEMBERED: usize = 64;

pub(super) struct Refresher {
    shared: Arc<Shared>,
    replicas: HashSet<Address>,
    log: AvailabilityLog,
    pace: DialPace,
    login_wait: LoginWait,
}

impl Refresher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let file = shared.settings.nodes.path().map(|path| path.display().to_string());
        let log = AvailabilityLog::new(None, file);
        Self {
            shared,
            replicas: HashSet::new(),
            log,
            pace: DialPace::default(),
            login_wait: LoginWait::new(),
        }
    }

    /// Never returns.
    pub(super) async fn run(mut self) {
        loop {
            match self.read().await {
                Ok(ranges) => {
                    self.login_wait.reset();
                    let replicas = ranges.iter().flat_map(|range| range.replicas.iter());
                    self.replicas = replicas.take(REMEMBERED).cloned().collect();
                    self.shared.install(&ranges);
                    self.log.available();
                }
                Err(Unread { error, only_logins_refused }) => {
                    // Later on, the keepers of the nodes log that they are down.
                    if !self.shared.map.borrow().is_known() {
                        self.log.unavailable(&error);
                    }
                    if only_logins_refused {
                        self.wait_for_credentials().await;
                        continue;
                    }
                }
            }
            sleep(PACE).await;
            let interval = if self.is_in_trouble() { INTERVAL_IN_TROUBLE } else { INTERVAL };
            tokio::select! {
                () = self.shared.refresh.notified() => {}
                () = sleep(interval) => {}
            }
        }
    }

    /// Waits longer and longer, or until the file of the URLs changes or a primary can be asked.
    async fn wait_for_credentials(&mut self) {
        let nodes = &self.shared.settings.nodes;
        let tried = nodes.current();
        let changed = async {
            nodes.look().await;
            nodes.changed_from(&tried).await;
        };
        let primaries: Vec<_> = self.shared.map.borrow().nodes().cloned().collect();
        // Redis does not replicate users, so the primaries may accept what a replica refuses.
        let mut connecting: FuturesUnordered<_> =
            primaries.iter().map(|node| node.state.until_connected()).collect();
        let over = async {
            tokio::select! {
                () = changed => {}
                Some(()) = connecting.next() => {}
            }
        };
        let _ = timeout(self.login_wait.next_delay(), over).await;
    }

    fn is_in_trouble(&self) -> bool {
        let map = self.shared.map.borrow();
        !map.is_known() || map.nodes().any(|node| !node.state.has_working_connection())
    }

    /// Asks the nodes that are connected, one after another, and then all others that are known.
    async fn read(&self) -> Result<Vec<SlotRange>, Unread> {
        let mut nodes: Vec<_> = self.shared.map.borrow().nodes().cloned().collect();
        // Another one each time: one that is cut off from the others knows of no change.
        nodes.shuffle(&mut rand::rng());
        for node in &nodes {
            let connection = node.state.working_connection();
            if let (Some(mut connection), Some(address)) = (connection, &node.address) {
                let ranges = timeout(SCRIPT_TIMEOUT, slot_ranges(&mut connection, address)).await;
                if let Ok(Ok(ranges)) = ranges {
                    return Ok(ranges);
                }
            }
        }
        self.read_elsewhere(&nodes).await
    }

    /// Dials the nodes in the setting and the replicas, but not the primaries, whose keepers connect to them.
    ///
    /// The next one as soon as one fails, and after [`STAGGER`], so that a frozen node delays nothing. A refused
    /// login ends the round, since all nodes have the same users, unless another node could not be reached, in this
    /// round or a former one: it may be back sooner than a refused login may be repeated.
    async fn read_elsewhere(&self, primaries: &[Arc<CacheNode>]) -> Result<Vec<SlotRange>, Unread> {
        let settings = &self.shared.settings.nodes;
        settings.look().await;
        let seeds = settings.current();
        let mut nodes: HashSet<_> = seeds.nodes().iter().map(Address::of).collect();
        nodes.extend(self.replicas.iter().cloned());
        for primary in primaries {
            primary.address.as_ref().map(|address| nodes.remove(address));
        }
        let mut due = self.pace.due(&seeds, nodes.into_iter().collect());
        due.shuffle(&mut rand::rng());
        // Taken from the end.
        due.sort_by_key(|node| !self.pace.refuses_login(node));
        let mut dials = FuturesUnordered::new();
        let mut unread = Unread { error: CacheError::Unavailable, only_logins_refused: false };
        loop {
            if let Some(address) = due.pop() {
                let node = seeds.first().at(&address.host, address.port);
                dials.push(async move { (address, slots_at(&node, SCRIPT_TIMEOUT).await) });
            }
            let answer = tokio::select! {
                Some(answer) = dials.next() => answer,
                () = sleep(STAGGER), if !due.is_empty() => continue,
                else => break,
            };
            match answer {
                (node, Ok(ranges)) => {
                    self.pace.answered(&node);
                    return Ok(ranges);
                }
                (node, Err(error)) => {
                    if error.is_refused_login() {
                        self.pace.login_refused(&node);
                        unread.only_logins_refused = true;
                        due.clear();
                    } else {
                        self.pace.failed(&node);
                    }
                    if says_more(&error) >= says_more(&unread.error) {
                        unread.error = error;
                    }
                }
            }
        }
        unread.only_logins_refused &= !self.pace.any_fails_otherwise();
        Err(unread)
    }
}

/// Why the slots could not be read.
struct Unread {
    error: CacheError,
    /// No node failed for another reason, so it is not worth trying others.
    only_logins_refused: bool,
}

/// Which of several failures is reported: what Redis says is more useful than that a node cannot be reached, and what
/// an operator must change more than what passes.
fn says_more(error: &CacheError) -> u8 {
    match error {
        _ if error.is_refused_login() => 4,
        CacheError::Refused(refusal) if refusal.recovery() == Recovery::ByOperator => 4,
        CacheError::Failed(text) if text == NO_CLUSTER => 4,
        CacheError::Refused(_) => 3,
        CacheError::Failed(_) => 2,
        CacheError::Timeout => 1,
        CacheError::Unavailable | CacheError::SentinelLogin => 0,
    }
}

/// Connects to this node, and asks it for the slots. `limit`: of its answer.
pub(in crate::cache) async fn slots_at(
    node: &RedisNode,
    limit: Duration,
) -> Result<Vec<SlotRange>, CacheError> {
    let mut connection = connect_to(node).await?;
    let address = Address::of(node);
    let ranges = slot_ranges(&mut *connection, &address);
    timeout(limit, ranges).await.map_err(|_| CacheError::Timeout)?
}

/// The slots as this node knows them.
async fn slot_ranges(
    connection: &mut impl ConnectionLike,
    address: &Address,
) -> Result<Vec<SlotRange>, CacheError> {
    let mut question = redis::cmd("CLUSTER");
    let answer = question.arg("SLOTS").query_async::<Value>(connection).await;
    let ranges = parse_slots(&answer.map_err(|error| no_answer(&error))?, address);
    if ranges.is_empty() {
        return Err(CacheError::Refused(Refusal::ClusterDown));
    }
    Ok(ranges)
}

fn no_answer(error: &RedisError) -> CacheError {
    // `ERR This instance has cluster support disabled`, or a command that a sentinel or a proxy lacks.
    match CacheError::of(error) {
        CacheError::Refused(Refusal::Other) => CacheError::Failed(NO_CLUSTER.to_owned()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        cache::{deferred::DeferredScripts, test_redis::TestRedis},
        config::{RedisMode, RedisSettings, Watched, sentinel_nodes},
        telemetry::metrics::Metrics,
    };

    fn refresher(urls: &str) -> Refresher {
        let nodes = Watched::fixed(sentinel_nodes(urls).unwrap());
        let settings = RedisSettings { mode: RedisMode::Cluster, nodes, sentinels: None };
        let deferred = Arc::new(DeferredScripts::default());
        Refresher::new(Arc::new(Shared::new(&settings, Metrics::new(), deferred)))
    }

    /// The address of the Redis of the tests, and a URL whose login it refuses.
    async fn refusing() -> (Address, String) {
        let address = TestRedis::connect().await.address();
        let url = format!("redis://nobody:wrong@{address}");
        (address, url)
    }

    #[tokio::test]
    async fn refused_login_holds_nothing_up_while_another_node_is_down() {
        let (_, refusing) = refusing().await;
        let alone = refresher(&refusing);
        assert!(alone.read().await.unwrap_err().only_logins_refused);
        let down = "redis://nobody:wrong@127.0.0.1:1";
        let refresher = refresher(&format!("{refusing},{down}"));
        // It has just failed, so it is not dialled in this round.
        let address = Address { host: "127.0.0.1".to_owned(), port: 1 };
        let seeds = refresher.shared.settings.nodes.current();
        refresher.pace.due(&seeds, vec![address.clone()]);
        refresher.pace.failed(&address);
        let unread = refresher.read().await.unwrap_err();
        assert!(unread.error.is_refused_login());
        assert!(!unread.only_logins_refused, "the one that is down must be tried soon");
    }

    #[tokio::test]
    async fn wait_after_refused_logins_ends_when_a_primary_is_back() {
        let (primary, refusing) = refusing().await;
        let mut refresher = refresher(&refusing.replace("nobody:wrong@", ""));
        let range = SlotRange { first: 0, last: 16_383, primary, replicas: Vec::new() };
        refresher.shared.install(&[range]);
        while refresher.login_wait.next_delay() < Duration::from_secs(30) {}
        let began = Instant::now();
        refresher.wait_for_credentials().await;
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
}
