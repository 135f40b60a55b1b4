//! How long to wait after Redis refused a login.

use std::time::Duration;

/// At first and at most: repeated tries fill the log of Redis (ACL LOG) and look like an attack.
const MIN_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// Delays that double.
pub(super) struct LoginWait {
    next: Duration,
}

impl LoginWait {
    pub(super) const fn new() -> Self {
        Self { next: MIN_DELAY }
    }

    pub(super) fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = MAX_DELAY.min(2 * delay);
        delay
    }

    /// Redis accepted a login.
    pub(super) fn reset(&mut self) {
        self.next = MIN_DELAY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_grows_from_one_to_thirty_seconds() {
        let mut wait = LoginWait::new();
        let mut delays = || (0..7).map(|_| wait.next_delay().as_secs()).collect::<Vec<_>>();
        assert_eq!(delays(), [1, 2, 4, 8, 16, 30, 30]);
        wait.reset();
        assert_eq!(wait.next_delay(), MIN_DELAY);
    }
}
