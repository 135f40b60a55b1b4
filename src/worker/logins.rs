//! Which settings to connect to RabbitMQ with next, and when.

use tokio::time::Instant;

use crate::{config::AmqpNodes, retry::LoginWait};

/// How many refused settings are remembered: the current and the former ones, and some that a file held for a
/// moment.
const MAX_REFUSED: usize = 4;

/// The connections so far, and their logins.
#[derive(Debug)]
pub(super) struct Logins {
    /// The settings of the last login that RabbitMQ accepted.
    accepted: Option<AmqpNodes>,
    /// Settings whose login RabbitMQ refused, and when they may be tried again.
    refused: Vec<(AmqpNodes, Instant)>,
    /// The settings of the last try that failed for another reason, if it was the last one.
    failed: Option<AmqpNodes>,
    wait: LoginWait,
}

/// What to do next.
#[derive(Clone, Debug)]
pub(super) enum NextLogin {
    /// Log in with these settings.
    Now(AmqpNodes),
    /// Wait until this time, or until the settings change.
    At(Instant),
}

impl Logins {
    pub(super) fn new() -> Self {
        Self { accepted: None, refused: Vec::new(), failed: None, wait: LoginWait::new() }
    }

    /// Tries the current settings, and, if `or_former`, those that RabbitMQ accepted last: a file may change
    /// before RabbitMQ does, or hold a mistake. Tries of both alternate.
    pub(super) fn next(&self, current: &AmqpNodes, or_former: bool) -> NextLogin {
        let former = self.former(current).filter(|_| or_former);
        let mut order = [Some(current), former];
        if self.failed.as_ref().is_some_and(|failed| failed.is_same(current)) {
            order.reverse();
        }
        let mut next = None;
        for nodes in order.into_iter().flatten() {
            match self.refused.iter().find(|(refused, _)| refused.is_same(nodes)) {
                Some((_, at)) if *at > Instant::now() => {
                    next = Some(next.map_or(*at, |next: Instant| next.min(*at)));
                }
                _ => return NextLogin::Now(nodes.clone()),
            }
        }
        NextLogin::At(next.unwrap_or_else(Instant::now))
    }

    /// The settings that RabbitMQ accepted last, unless they are the current ones. Those have not worked yet.
    pub(super) fn former(&self, current: &AmqpNodes) -> Option<&AmqpNodes> {
        self.accepted.as_ref().filter(|accepted| !accepted.is_same(current))
    }

    /// A connection with these settings was not made, though the login was not refused.
    pub(super) fn failed(&mut self, nodes: &AmqpNodes) {
        self.failed = Some(nodes.clone());
    }

    /// RabbitMQ refused a login with these settings. Returns whether this is the first refusal since it last
    /// accepted the current ones, which is logged.
    pub(super) fn refused(&mut self, nodes: &AmqpNodes) -> bool {
        let is_first = self.refused.is_empty();
        self.refused.retain(|(refused, _)| !refused.is_same(nodes));
        if self.refused.len() == MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push((nodes.clone(), Instant::now() + self.wait.next_delay()));
        is_first
    }

    /// RabbitMQ accepted a login with these settings.
    pub(super) fn accepted(&mut self, nodes: &AmqpNodes, are_current: bool) {
        self.accepted = Some(nodes.clone());
        self.refused.retain(|(refused, _)| !are_current && !refused.is_same(nodes));
        if self.refused.is_empty() {
            self.wait.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::config::amqp_nodes;

    fn is_now(next: NextLogin, nodes: &AmqpNodes) -> bool {
        matches!(next, NextLogin::Now(now) if now.is_same(nodes))
    }

    #[tokio::test(start_paused = true)]
    async fn delay_grows_from_one_to_thirty_seconds() {
        let current = amqp_nodes("amqp://u:wrong@a").unwrap();
        let mut logins = Logins::new();
        let mut delays = Vec::new();
        for _ in 0..7 {
            assert!(is_now(logins.next(&current, true), &current));
            logins.refused(&current);
            let NextLogin::At(at) = logins.next(&current, true) else { panic!("at once") };
            delays.push((at - Instant::now()).as_secs());
            advance(at - Instant::now()).await;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        logins.accepted(&current, true);
        assert!(logins.refused(&current), "the first");
        let NextLogin::At(at) = logins.next(&current, true) else { panic!("at once") };
        assert_eq!((at - Instant::now()).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn changed_settings_are_tried_at_once_and_former_ones_if_they_are_refused() {
        let [former, wrong, right] =
            ["former", "wrong", "right"].map(|p| amqp_nodes(&format!("amqp://u:{p}@a")).unwrap());
        let mut logins = Logins::new();
        logins.accepted(&former, true);
        assert!(is_now(logins.next(&wrong, true), &wrong));
        assert!(logins.refused(&wrong), "the first");
        assert!(matches!(logins.next(&wrong, false), NextLogin::At(_)));
        assert!(is_now(logins.next(&wrong, true), &former));
        logins.accepted(&former, false);
        // Still waits before it tries the wrong ones again.
        assert!(matches!(logins.next(&wrong, false), NextLogin::At(_)));
        assert!(is_now(logins.next(&right, false), &right));
        assert!(!logins.refused(&former), "one log line is enough");
        assert!(matches!(logins.next(&wrong, true), NextLogin::At(_)));
        advance(Duration::from_secs(1)).await;
        assert!(is_now(logins.next(&wrong, true), &wrong));
        logins.accepted(&right, true);
        assert!(logins.refused(&right), "the first");
    }

    #[tokio::test(start_paused = true)]
    async fn changed_settings_that_fail_alternate_with_the_former_ones_until_they_work() {
        let [former, changed] =
            ["a", "b"].map(|host| amqp_nodes(&format!("amqp://{host}")).unwrap());
        let mut logins = Logins::new();
        logins.failed(&former);
        assert!(is_now(logins.next(&former, true), &former), "there are no others");
        logins.accepted(&former, true);
        assert!(logins.former(&former).is_none());
        assert!(is_now(logins.next(&changed, true), &changed));
        logins.failed(&changed);
        assert!(is_now(logins.next(&changed, false), &changed));
        assert!(is_now(logins.next(&changed, true), &former));
        logins.failed(&former);
        assert!(is_now(logins.next(&changed, true), &changed));
        logins.failed(&changed);
        logins.accepted(&former, false);
        // Lost again: the changed ones have failed, so the former ones come first.
        assert!(is_now(logins.next(&changed, true), &former));
        // Refused meanwhile.
        logins.refused(&former);
        assert!(is_now(logins.next(&changed, true), &changed));
        logins.accepted(&changed, true);
        logins.failed(&changed);
        assert!(is_now(logins.next(&changed, true), &changed), "no way back");
    }
}
