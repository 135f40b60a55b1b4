//! Which sentinels refuse the login, and when to ask them again.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{config::RedisNodes, retry::LoginWait};

/// The refused logins since the setting last changed.
///
/// The sentinels are asked every 5 s, and many times a second while the primary is down. One that refuses the
/// login must not be: the others may answer, so the keeper does not wait.
#[derive(Default)]
pub(super) struct SentinelLogins(Mutex<Refused>);

#[derive(Default)]
struct Refused {
    nodes: Option<Arc<RedisNodes>>,
    /// By the place in `nodes`: when to ask again.
    waits: HashMap<usize, (Instant, LoginWait)>,
}

impl SentinelLogins {
    /// The places of the sentinels that may be asked now.
    pub(super) fn may_be_asked(&self, nodes: &Arc<RedisNodes>) -> Vec<usize> {
        let mut refused = self.0.lock();
        if refused.nodes.as_ref().is_none_or(|known| !Arc::ptr_eq(known, nodes)) {
            *refused = Refused { nodes: Some(Arc::clone(nodes)), waits: HashMap::new() };
        }
        let now = Instant::now();
        let waits = |n: &usize| refused.waits.get(n).is_some_and(|(until, _)| *until > now);
        (0..nodes.nodes().len()).filter(|n| !waits(n)).collect()
    }

    pub(super) fn refused(&self, n: usize) {
        let mut refused = self.0.lock();
        let now = Instant::now();
        let (until, wait) = refused.waits.entry(n).or_insert((now, LoginWait::new()));
        *until = now + wait.next_delay();
    }

    pub(super) fn accepted(&self, n: usize) {
        self.0.lock().waits.remove(&n);
    }
}
