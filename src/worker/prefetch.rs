//! How many deliveries are fetched at a time, with regard to one that may kill the worker.
//!
//! RabbitMQ counts how often a message came back and, when that was too often, moves it to the dead
//! queue. A message that kills every worker must not take along those that were fetched together with
//! it, life after life. So the first is fetched alone, where any waits. If it came back often, and so
//! the next, more are fetched only as those before are settled: twice as many each time, since older
//! brokers count messages that were merely handed back, too, and there may be many of those.

use crate::broker::SUSPECT_REDELIVERIES;

/// A message that came back so often may be one that kills workers.
const SUSPECT: u32 = SUSPECT_REDELIVERIES;

/// How many deliveries are fetched at a time.
#[derive(Debug)]
pub(super) struct Width {
    now: u16,
    full: u16,
    /// How many were taken since it became what it is.
    taken: u16,
    /// It has grown over messages that looked like harm and did none.
    trusting: bool,
}

/// What a delivery means for those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Same,
    /// So many may be fetched at a time: at once, or when all before are settled.
    Widen { to: u16, when_settled: bool },
    /// It should not be in our hands together with others, as it is.
    Alone,
}

impl Width {
    /// One at a time, to be widened up to `full`.
    pub(super) fn new(full: u16) -> Self {
        Self { now: 1, full, taken: 0, trusting: false }
    }

    /// Nothing waits, and so nothing that kills workers: how many may be fetched at a time now, if that is
    /// more than before.
    pub(super) fn quiet(&mut self) -> Option<u16> {
        self.is_new().then(|| {
            self.now = self.full;
            self.full
        })
    }

    /// Whether nothing was taken yet, and more might be.
    pub(super) fn is_new(&self) -> bool {
        self.now < self.full && self.now == 1 && self.taken == 0
    }

    /// A delivery was taken that came back so often before.
    pub(super) fn after(&mut self, came_back: u32) -> Step {
        let suspect = came_back >= SUSPECT;
        self.taken = self.taken.saturating_add(1);
        if self.now >= self.full {
            return if suspect && !self.trusting && self.full > 1 {
                Step::Alone
            } else {
                Step::Same
            };
        }
        if suspect && self.taken < self.now {
            return Step::Same;
        }
        self.now = if suspect { self.now.saturating_mul(2).min(self.full) } else { self.full };
        self.taken = 0;
        self.trusting = suspect;
        Step::Widen { to: self.now, when_settled: suspect }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_well_lets_everything_come() {
        let mut width = Width::new(64);
        assert_eq!(width.after(0), Step::Widen { to: 64, when_settled: false });
        assert_eq!(width.after(SUSPECT - 1), Step::Same);
        assert_eq!(width.after(SUSPECT), Step::Alone);
        assert_eq!(Width::new(1).after(0), Step::Same);
    }

    #[test]
    fn where_nothing_waits_everything_may_come() {
        let mut width = Width::new(64);
        assert_eq!((width.quiet(), width.quiet()), (Some(64), None));
        assert_eq!(width.after(0), Step::Same);
        assert_eq!(width.after(SUSPECT), Step::Alone);
        assert_eq!(Width::new(1).quiet(), None);
    }

    #[test]
    fn what_looks_like_harm_comes_alone_and_then_in_growing_numbers() {
        let mut width = Width::new(5);
        assert_eq!(width.after(SUSPECT), Step::Widen { to: 2, when_settled: true });
        assert_eq!(width.after(SUSPECT), Step::Same);
        assert_eq!(width.after(SUSPECT), Step::Widen { to: 4, when_settled: true });
        assert_eq!(width.after(0), Step::Widen { to: 5, when_settled: false });
        assert_eq!(width.after(SUSPECT), Step::Alone);
        let mut width = Width::new(2);
        assert_eq!(width.after(SUSPECT), Step::Widen { to: 2, when_settled: true });
        assert_eq!(width.after(SUSPECT), Step::Same, "those before did no harm");
    }
}
