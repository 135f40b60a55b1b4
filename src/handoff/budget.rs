//! What one delivery may spend on its platform calls.

use std::time::Duration;

use super::job::Failure;
use crate::{platform::Ticket, retry::RetrySchedule};

/// A repeated call may return a session that has ended. Each further one is asked for with another key or token, so
/// that two should be enough.
const MAX_ENDED_SESSIONS: u32 = 4;

/// What one delivery may spend on all its platform calls.
pub(super) struct CallBudget<'a> {
    /// Its place at the gate.
    pub(super) ticket: Ticket<'a>,
    /// Its delays between tries, until the retry budget is spent.
    pub(super) schedule: RetrySchedule,
    /// How much of its time it waited at the gate.
    waited: Duration,
    /// How long its last failed call took.
    pub(super) last_call: Duration,
    /// How many sessions it got that had ended already.
    ended_sessions: u32,
}

impl<'a> CallBudget<'a> {
    pub(super) fn new(ticket: Ticket<'a>, retry_budget: Duration) -> Self {
        Self {
            ticket,
            schedule: RetrySchedule::new(retry_budget),
            waited: Duration::ZERO,
            last_call: Duration::ZERO,
            ended_sessions: 0,
        }
    }

    /// Whether the platform returned an ended session.
    pub(super) fn got_ended_session(&self) -> bool {
        self.ended_sessions > 0
    }

    /// Counts a session that has ended before its link was handed out.
    ///
    /// # Errors
    /// There were too many: asking for another may not help now.
    pub(super) fn count_ended_session(&mut self) -> Result<(), Failure> {
        self.ended_sessions += 1;
        if self.ended_sessions < MAX_ENDED_SESSIONS {
            return Ok(());
        }
        Err(Failure::Transient("the platform returned only sessions that have ended".to_owned()))
    }

    /// Adds time to the budget that the request spent waiting at the gate or for Redis.
    pub(super) fn exclude(&mut self, waited: Duration) {
        self.waited += waited;
        self.schedule.extend(waited);
    }

    pub(super) fn was_mostly_held(&self) -> bool {
        self.waited > self.ticket.age() / 2
    }
}
