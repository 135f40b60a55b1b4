//! Makes connections to Redis with the credentials that are valid now.

use std::{sync::Arc, time::Duration};

use deadpool_redis::Connection;

use super::{
    dial::{Address, Dialler},
    dial_pace::DialPace,
    error::CacheError,
    sentinel::{Tie, find_primary, require_primary, until_moved},
};
use crate::config::{RedisNodes, RedisSettings, Sentinels, Watched};

/// How often the sentinels are asked whether the primary is still the same: one that is cut off from them
/// goes on to take writes, which are lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The same while the worker connects to it.
const LOOK_INTERVAL_CONNECTING: Duration = Duration::from_millis(250);

/// Which server to connect to.
#[derive(Clone)]
pub(super) enum Target {
    /// The one in the URL.
    Url,
    /// The one that the sentinels call the primary.
    Primary(Sentinels),
    /// A node of a cluster.
    Node(Address),
}

/// The source of connections. Follows the files that the URLs came from.
///
/// Redis authenticates a connection once, so a new password matters to the next connection only.
pub(super) struct Connector {
    nodes: Watched<RedisNodes>,
    target: Target,
    sentinel_pace: DialPace,
    /// What made the latest connection, and what it was made of.
    latest: Option<(Arc<RedisNodes>, Option<Address>, Dialler)>,
    /// There was no connection to `latest` at the last try.
    failed: bool,
    /// The URLs of the latest try, those of the sentinels second.
    tried: (Arc<RedisNodes>, Option<Arc<RedisNodes>>),
}

impl Connector {
    /// Connects to what the settings lead to; to the given node in a cluster.
    pub(super) fn new(settings: &RedisSettings, node: Option<Address>) -> Self {
        let target = match (node, &settings.sentinels) {
            (Some(address), _) => Target::Node(address),
            (None, Some(sentinels)) => Target::Primary(sentinels.clone()),
            (None, None) => Target::Url,
        };
        Self {
            nodes: settings.nodes.clone(),
            target,
            sentinel_pace: DialPace::default(),
            failed: false,
            latest: None,
            tried: (settings.nodes.current(), None),
        }
    }

    /// A new connection. Reads the files of the URLs first.
    pub(super) async fn connect(&mut self) -> Result<Connection, CacheError> {
        self.look().await;
        let sentinels = self.sentinels().cloned();
        let sentinel_urls = sentinels.as_ref().map(|sentinels| sentinels.nodes.current());
        self.tried = (self.nodes.current(), sentinel_urls);
        let Some(sentinels) = sentinels else {
            let address = self.node().cloned();
            return self.dialler(address)?.connect().await;
        };
        let former = self.latest.as_ref().and_then(|(_, address, _)| address.clone());
        let tie = match &former {
            Some(former) if self.failed => Tie::Avoid(former),
            former => Tie::Prefer(former.as_ref()),
        };
        let address = find_primary(&sentinels, &self.sentinel_pace, tie).await?;
        self.failed = true;
        let dialler = self.dialler(Some(address.clone()))?;
        let connecting = async {
            let mut connection = dialler.connect().await?;
            require_primary(&mut connection).await?;
            Ok(connection)
        };
        let moved =
            until_moved(&sentinels, &self.sentinel_pace, &address, LOOK_INTERVAL_CONNECTING);
        let connected = tokio::select! {
            connected = connecting => connected,
            // A frozen primary would hold up the connection to the new one by the whole limit.
            () = moved => Err(CacheError::Unavailable),
        };
        self.failed = connected.is_err();
        connected
    }

    async fn look(&self) {
        self.nodes.look().await;
        if let Some(sentinels) = self.sentinels() {
            sentinels.nodes.look().await;
        }
    }

    fn sentinels(&self) -> Option<&Sentinels> {
        match &self.target {
            Target::Primary(sentinels) => Some(sentinels),
            Target::Url | Target::Node(_) => None,
        }
    }

    /// Reads the files again, and waits until the URLs are others than at the latest try.
    pub(super) async fn until_urls_changed(&self) {
        self.look().await;
        let sentinels = async {
            match (self.sentinels(), &self.tried.1) {
                (Some(sentinels), Some(tried)) => sentinels.nodes.changed_from(tried).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.nodes.changed_from(&self.tried.0) => {}
            () = sentinels => {}
        }
    }

    /// The files of the URLs, for the log.
    pub(super) fn files(&self) -> Option<String> {
        let sentinels = self.sentinels().and_then(|sentinels| sentinels.nodes.path());
        let files = [self.nodes.path(), sentinels].into_iter().flatten();
        let files: Vec<_> = files.map(|path| path.display().to_string()).collect();
        (!files.is_empty()).then(|| files.join(", "))
    }

    /// The node of a cluster that it connects to.
    pub(super) fn node(&self) -> Option<&Address> {
        match &self.target {
            Target::Node(address) => Some(address),
            Target::Url | Target::Primary(_) => None,
        }
    }

    /// Waits until the sentinels call another server the primary.
    pub(super) async fn until_moved(&self) {
        match (self.sentinels(), &self.latest) {
            (Some(sentinels), Some((_, Some(address), _))) => {
                until_moved(sentinels, &self.sentinel_pace, address, LOOK_INTERVAL).await
            }
            _ => std::future::pending().await,
        }
    }

    fn dialler(&mut self, address: Option<Address>) -> Result<Dialler, CacheError> {
        let nodes = self.nodes.current();
        if let Some((known, known_address, dialler)) = &self.latest
            && Arc::ptr_eq(known, &nodes)
            && *known_address == address
        {
            return Ok(dialler.clone());
        }
        let node = match &address {
            Some(Address { host, port }) => nodes.first().at(host, *port),
            None => nodes.first().clone(),
        };
        let dialler = Dialler::to(&node).map_err(|error| CacheError::of(&error))?;
        self.latest = Some((nodes, address, dialler.clone()));
        Ok(dialler)
    }
}
