//! How long a request waits for a Redis that is unavailable: a session made meanwhile might be a duplicate,
//! which costs money, and the person who waits for the link hardly notices a second.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{claim::UnansweredClaim, handle::Cache, refusal::Recovery};

/// Delay before a claim is repeated on a connection that still works.
const REPEAT_DELAY: Duration = Duration::from_millis(50);

/// What is left of the time that one request may wait for Redis, however often Redis comes and goes.
pub(crate) struct Patience {
    whole: Duration,
    left: Duration,
}

impl Patience {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { whole: patience, left: patience }
    }

    /// Until when a request that sent its claim at `since` may wait.
    pub(crate) fn until(&self, since: Instant, unavailable_since: Option<Instant>) -> Instant {
        let end = since + self.left;
        unavailable_since.map_or(end, |began| end.min(began + self.whole))
    }

    /// Records that a request has waited since then.
    pub(crate) fn spend(&mut self, since: Instant) {
        self.left = self.left.saturating_sub(since.elapsed());
    }
}

impl Cache {
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.0.patience)
    }

    /// Waits after a failed claim until it can be repeated.
    ///
    /// Returns `false` once the request has waited as long as it may, or the keys' server has been unavailable that
    /// long, and at once if only an operator can end the failure. `since`: when the claim was sent.
    pub(crate) async fn wait_to_repeat(
        &self,
        patience: &mut Patience,
        since: Instant,
        claim: &UnansweredClaim,
    ) -> bool {
        if claim.error.recovery() == Recovery::ByOperator {
            return false;
        }
        let pool = &self.0.pool;
        let key = &claim.holder.keys.link;
        let node = pool.node(key);
        let until = patience.until(since, pool.unavailable_since(key));
        let repeat = async {
            if node.state.has_working_connection() {
                sleep(REPEAT_DELAY).await;
            }
            pool.until_connected(key).await;
        };
        let in_time = Instant::now() < until && timeout_at(until, repeat).await.is_ok();
        patience.spend(since);
        in_time
    }
}
