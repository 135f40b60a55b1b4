//! How many calls one HTTP/2 connection may carry at once, as learned from the server.

use std::time::Duration;

use tokio::time::Instant;

/// Calls in flight on one connection. Servers permit 100 streams or more, with few exceptions.
///
/// Each connection holds 60 to 90 KiB: with 1,024 in flight, 32 take 6 to 9 MiB and a tenth of the processor time less
/// than 8, and 64 or 100 gain little more. A packet that is lost delays all calls of its connection.
const MAX_CALLS: usize = 32;

/// How often one call tries whether a server that permitted fewer calls permits more now.
const TRIAL_INTERVAL: Duration = Duration::from_secs(60);

/// The calls in flight on one connection: at first [`MAX_CALLS`], later what the server has shown that it permits.
///
/// One call at a time tries whether it permits one more: the first one a minute after the last that had to wait for a
/// stream, the next as soon as one has not had to. A server whose limit stays thus delays one call a minute.
pub(super) struct StreamLimit {
    calls: usize,
    /// `None`: the server has not shown a limit.
    next_trial: Option<Instant>,
}

impl Default for StreamLimit {
    fn default() -> Self {
        Self { calls: MAX_CALLS, next_trial: None }
    }
}

impl StreamLimit {
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    pub(super) fn is_trial_due(&self, now: Instant) -> bool {
        self.next_trial.is_some_and(|due| due <= now)
    }

    pub(super) fn start_trial(&mut self, now: Instant) {
        self.next_trial = Some(now + TRIAL_INTERVAL);
    }

    /// Records that a connection had this many calls at once.
    pub(super) fn raise(&mut self, permitted: usize, now: Instant) {
        if permitted > self.calls {
            self.calls = permitted.min(MAX_CALLS);
            self.next_trial = (self.calls < MAX_CALLS).then_some(now);
        }
    }

    /// Records that the server permits no more than this many calls.
    pub(super) fn lower(&mut self, permitted: usize, now: Instant) {
        self.calls = self.calls.min(permitted);
        self.start_trial(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_kept_and_tried_by_one_call_a_minute_that_raises_it() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let mut limit = StreamLimit::default();
        assert!(!limit.is_trial_due(after(3_600)), "nothing is known of a limit");
        limit.lower(8, now);
        assert!(!limit.is_trial_due(after(59)));
        assert!(limit.is_trial_due(after(60)));
        assert_eq!(limit.calls(), 8, "kept meanwhile");
        limit.start_trial(after(60));
        assert!(!limit.is_trial_due(after(61)), "one call at a time");
        // Another call had ended, so that the trial took its stream.
        limit.raise(8, after(61));
        assert_eq!((limit.calls(), limit.is_trial_due(after(61))), (8, false));
        limit.raise(9, after(120));
        assert_eq!((limit.calls(), limit.is_trial_due(after(120))), (9, true));
        limit.lower(9, after(121));
        assert!(!limit.is_trial_due(after(180)));
        limit.raise(40, after(181));
        assert_eq!((limit.calls(), limit.is_trial_due(after(9_999))), (32, false));
    }
}
