//! When each server may be dialled again: after a failure, and after a refused login.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::dial::Address;
use crate::{
    config::RedisNodes,
    retry::{Backoff, LoginWait},
};

const SHORTEST_DELAY: Duration = Duration::from_millis(50);
/// A server that is back is used within a second.
const LONGEST_DELAY: Duration = Duration::from_millis(500);

/// The failures of each server since the setting last changed.
///
/// Servers are dialled in parallel, many times a second while the primary is down. One that is down, and even more one
/// that refuses the login, must be dialled less often, without a delay for the others.
#[derive(Default)]
pub(super) struct DialPace(Mutex<Waits>);

#[derive(Default)]
struct Waits {
    setting: Option<Arc<RedisNodes>>,
    servers: HashMap<Address, Wait>,
}

struct Wait {
    until: Instant,
    backoff: Backoff,
    login: LoginWait,
    login_refused: bool,
}

impl DialPace {
    /// Those of the servers that may be dialled now. Forgets all others, and all failures if the setting is another:
    /// its credentials may be others.
    pub(super) fn due(&self, setting: &Arc<RedisNodes>, servers: Vec<Address>) -> Vec<Address> {
        let mut waits = self.0.lock();
        if waits.setting.as_ref().is_none_or(|known| !Arc::ptr_eq(known, setting)) {
            *waits = Waits { setting: Some(Arc::clone(setting)), servers: HashMap::new() };
        }
        waits.servers.retain(|server, _| servers.contains(server));
        let now = Instant::now();
        let waits_on = |server: &Address| waits.servers.get(server).is_some_and(|w| w.until > now);
        servers.into_iter().filter(|server| !waits_on(server)).collect()
    }

    /// Whether the server refused the latest login that it answered.
    pub(super) fn refuses_login(&self, server: &Address) -> bool {
        self.0.lock().servers.get(server).is_some_and(|wait| wait.login_refused)
    }

    /// Whether any server did.
    pub(super) fn any_refuses_login(&self) -> bool {
        self.0.lock().servers.values().any(|wait| wait.login_refused)
    }

    /// Whether any server fails for another reason.
    pub(super) fn any_fails_otherwise(&self) -> bool {
        self.0.lock().servers.values().any(|wait| !wait.login_refused)
    }

    pub(super) fn failed(&self, server: &Address) {
        self.wait(server, |wait| wait.backoff.next_delay());
    }

    pub(super) fn login_refused(&self, server: &Address) {
        self.wait(server, |wait| {
            wait.login_refused = true;
            wait.login.next_delay()
        });
    }

    pub(super) fn answered(&self, server: &Address) {
        self.0.lock().servers.remove(server);
    }

    fn wait(&self, server: &Address, delay: impl FnOnce(&mut Wait) -> Duration) {
        let mut waits = self.0.lock();
        let now = Instant::now();
        let wait = waits.servers.entry(server.clone()).or_insert_with(|| Wait {
            until: now,
            backoff: Backoff::between(SHORTEST_DELAY, LONGEST_DELAY),
            login: LoginWait::new(),
            login_refused: false,
        });
        wait.until = now + delay(wait);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::config::sentinel_nodes;

    fn setting() -> Arc<RedisNodes> {
        Arc::new(sentinel_nodes("redis://a,redis://b").unwrap())
    }

    fn only(server: &Address) -> Vec<Address> {
        vec![server.clone()]
    }

    fn servers() -> [Address; 2] {
        ["a", "b"].map(|host| Address { host: host.to_owned(), port: 26379 })
    }

    #[tokio::test(start_paused = true)]
    async fn refused_logins_are_spaced_for_their_server_alone_until_the_setting_changes() {
        let (pace, setting_1, [a, b]) = (DialPace::default(), setting(), servers());
        let due = |setting| pace.due(setting, servers().into());
        assert_eq!(due(&setting_1), servers());
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            pace.login_refused(&a);
            assert_eq!(due(&setting_1), only(&b));
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert_eq!(due(&setting_1), only(&b), "{seconds}");
            advance(Duration::from_millis(1)).await;
            assert_eq!(due(&setting_1), servers(), "{seconds}");
        }
        pace.login_refused(&a);
        assert!(pace.refuses_login(&a) && !pace.refuses_login(&b) && pace.any_refuses_login());
        assert_eq!(due(&setting()), servers());
        assert!(!pace.any_refuses_login());
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_fails_is_dialled_again_within_half_a_second() {
        let (pace, setting, [a, b]) = (DialPace::default(), setting(), servers());
        let due = || pace.due(&setting, servers().into());
        assert_eq!(due(), servers());
        for _ in 0..10 {
            pace.failed(&a);
            assert_eq!(due(), only(&b));
            advance(LONGEST_DELAY).await;
            assert_eq!(due(), servers());
        }
        pace.failed(&a);
        pace.answered(&a);
        assert_eq!(due(), servers());
    }
}
