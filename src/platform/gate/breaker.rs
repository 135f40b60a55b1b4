//! A gate that is shut: who probes, and when.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::state::{Caller, Decision};
use crate::session::Call;

/// The pauses between probes of a platform that is down: the first, the longest. Without jitter, since
/// a person waits for what they find out.
const DOWN_PROBES: (Duration, Duration) =
    (Duration::from_millis(750), Duration::from_millis(2_900));
/// The same where somebody has to mend a setting.
const REFUSED_PROBES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Who has just probed in vain lets others go first.
const AFTER_YOU: Duration = Duration::from_millis(50);
/// Probes in a row by one and the same request, all others being gone, after which it is the one to
/// blame.
const ALONE: u32 = 3;

/// Cause calls are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This call fails for everyone.
    Down(Call),
    /// The platform refuses to give tokens: the key or the host is wrong.
    Refused,
}

pub(super) struct OpenBreaker {
    why: Cause,
    pause: Duration,
    next_probe: Instant,
    /// Those that find out. Usually one: a probe that is not answered does not keep the next back.
    probes: HashSet<Caller>,
    /// Who probed in vain last, and how often in a row.
    failed: Option<(Caller, u32)>,
}

impl OpenBreaker {
    pub(super) fn new(why: Cause, now: Instant) -> Self {
        let pause = why.pauses().0;
        let (next_probe, probes) = (now + pause, HashSet::new());
        Self { why, pause, next_probe, probes, failed: None }
    }

    pub(super) fn why(&self) -> Cause {
        self.why
    }

    /// A platform that refuses to give tokens may yet make sessions with those it gave.
    pub(super) fn holds(&self, call: Call) -> bool {
        self.why != Cause::Refused || call == Call::Token
    }

    pub(super) fn decide(&self, caller: Caller, now: Instant) -> Decision {
        let failed_last = self.failed.is_some_and(|(last, _)| last == caller);
        let next_probe = self.next_probe + if failed_last { AFTER_YOU } else { Duration::ZERO };
        match next_probe <= now {
            _ if self.probes.contains(&caller) => Decision::Go,
            true => Decision::Probe,
            false => Decision::WaitUntil(next_probe),
        }
    }

    pub(super) fn start_probe(&mut self, caller: Caller, now: Instant) {
        self.probes.insert(caller);
        self.pause = (self.pause * 2).min(self.why.pauses().1);
        self.next_probe = now + self.pause;
    }

    /// Somebody's call failed. Whether the gate is shut for one request alone.
    pub(super) fn failed(&mut self, caller: Caller, now: Instant) -> bool {
        if !self.refused(caller) {
            return false;
        }
        if self.why == Cause::Refused {
            // Something is being done about it: it is looked at again soon.
            self.pause = self.why.pauses().0;
            self.next_probe = now + self.pause;
            return false;
        }
        let alone = self.failed.is_some_and(|(last, times)| last == caller && times >= ALONE);
        alone && caller != super::IDLE
    }

    /// A probe was refused, or failed. Whether it was one.
    pub(super) fn refused(&mut self, caller: Caller) -> bool {
        let probe = self.probes.remove(&caller);
        if probe {
            let before =
                self.failed.filter(|(last, _)| *last == caller).map_or(0, |(_, times)| times);
            self.failed = Some((caller, before + 1));
        }
        probe
    }

    /// Whether a good answer shows that what was wrong is mended.
    pub(super) fn is_opened_by(&self, caller: Caller, call: Call) -> bool {
        match self.why {
            // One that was under way when the key was refused shows nothing.
            Cause::Refused => call == Call::Token && self.probes.contains(&caller),
            // Who makes sessions has given tokens. An idle probe makes none: nobody waits for one, so
            // the next to come may find out.
            Cause::Down(needed) => call == needed || call == Call::Session || caller == super::IDLE,
        }
    }

    pub(super) fn forget(&mut self, caller: Caller) -> bool {
        self.probes.remove(&caller)
    }
}

impl Cause {
    /// Between probes: the first pause and the longest.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Down(_) => DOWN_PROBES,
            Self::Refused => REFUSED_PROBES,
        }
    }
}
