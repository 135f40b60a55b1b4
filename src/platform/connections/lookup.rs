//! Looks up a host once for all connections that are being made at the same time.
//!
//! reqwest's own resolver (hyper-util 0.1.21) occupies a blocking thread for each lookup: 1,024 connections at once
//! started 30 to 90 threads with a local resolver. With one that takes longer, it is up to 512, Tokio's limit.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{FutureExt, future::Shared};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::Instant;

/// Connections join a lookup that began less than this ago. One that hangs must not delay those that come later.
const JOINABLE: Duration = Duration::from_secs(1);

type Addresses = io::Result<Vec<SocketAddr>>;
type LookUp = fn(String) -> Pin<Box<dyn Future<Output = Addresses> + Send>>;
type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;
type Lookup = Shared<Pin<Box<dyn Future<Output = Found> + Send>>>;

/// A resolver that shares lookups. It keeps no answer longer than connections wait for it.
pub(super) struct SharedLookup {
    look_up: LookUp,
    current: Mutex<Option<Current>>,
}

struct Current {
    host: String,
    began: Instant,
    /// Owned by the connections that wait for it.
    lookup: Weak<Lookup>,
}

impl SharedLookup {
    /// The system's resolver.
    pub(super) fn system() -> Self {
        Self::new(|host| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.collect()) })
        })
    }

    fn new(look_up: LookUp) -> Self {
        Self { look_up, current: Mutex::new(None) }
    }

    /// The lookup of this host that others wait for, or a new one.
    fn lookup(&self, host: &str) -> Arc<Lookup> {
        let mut current = self.current.lock();
        let shared = current.as_ref().filter(|it| it.host == host && it.began.elapsed() < JOINABLE);
        if let Some(lookup) = shared.and_then(|it| it.lookup.upgrade()) {
            return lookup;
        }
        let looking = (self.look_up)(host.to_owned());
        let found: Pin<Box<dyn Future<Output = Found> + Send>> =
            Box::pin(async move { looking.await.map_err(Arc::new) });
        let lookup = Arc::new(found.shared());
        let host = host.to_owned();
        *current = Some(Current { host, began: Instant::now(), lookup: Arc::downgrade(&lookup) });
        lookup
    }
}

impl Resolve for SharedLookup {
    fn resolve(&self, name: Name) -> Resolving {
        let lookup = self.lookup(name.as_str());
        Box::pin(async move {
            match Lookup::clone(&lookup).await {
                Ok(found) => Ok(Box::new(found.into_iter()) as Addrs),
                Err(error) => Err(io::Error::new(error.kind(), error).into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;
    use tokio::time::{advance, sleep};

    use super::*;

    async fn resolve(lookup: &SharedLookup, host: &str) -> Vec<SocketAddr> {
        lookup.resolve(host.parse().unwrap()).await.unwrap().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_wait_at_once_share_a_lookup() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let shared = SharedLookup::new(|_| {
            let number = LOOKUPS.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                sleep(Duration::from_millis(10)).await;
                let port = u16::try_from(number).unwrap();
                Ok(vec![(Ipv4Addr::LOCALHOST, port).into()])
            })
        });
        let all = join_all((0..100).map(|_| resolve(&shared, "platform.test"))).await;
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), 1);
        assert!(all.iter().all(|found| found[0].port() == 0));
        assert_eq!(resolve(&shared, "platform.test").await[0].port(), 1, "nothing is cached");
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn lookup_that_hangs_does_not_delay_later_connections() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        let shared = SharedLookup::new(|_| {
            let is_first = LOOKUPS.fetch_add(1, Ordering::Relaxed) == 0;
            Box::pin(async move {
                if is_first {
                    std::future::pending::<()>().await;
                }
                Ok(vec![(Ipv4Addr::LOCALHOST, 0).into()])
            })
        });
        let mut hanging = std::pin::pin!(resolve(&shared, "platform.test"));
        tokio::select! {
            biased;
            _ = &mut hanging => panic!("it hangs"),
            () = advance(JOINABLE) => {}
        }
        resolve(&shared, "platform.test").await;
        assert_eq!(LOOKUPS.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn lookup_of_unknown_host_fails_with_the_system_error() {
        let shared = SharedLookup::system();
        let error = shared.resolve("nothing.invalid".parse().unwrap()).await.err().unwrap();
        assert!(error.downcast_ref::<io::Error>().is_some(), "{error}");
        assert_eq!(resolve(&shared, "localhost").await[0].port(), 0);
    }
}
