//! What a delivery may spend on platform calls: time for retries, and one place at the gate.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    platform::{CallPermit, Ticket},
    retry::RetrySchedule,
    session::Call,
};

/// One delivery's budget for all its platform calls.
pub(super) struct CallBudget<'a> {
    started: Instant,
    /// How much of the time since then the gate held the request.
    held: Duration,
    schedule: RetrySchedule,
    ticket: Ticket<'a>,
}

impl<'a> CallBudget<'a> {
    pub(super) fn new(schedule: RetrySchedule, ticket: Ticket<'a>) -> Self {
        Self { started: Instant::now(), held: Duration::ZERO, schedule, ticket }
    }

    /// Asks for a rate permit early, so that the call does not wait for it.
    pub(super) fn reserve(&mut self, call: Call) {
        self.ticket.reserve(call);
    }

    /// Returns a reserved permit: no call follows soon.
    pub(super) fn release(&mut self) {
        self.ticket.cancel_reservation();
    }

    /// Waits until the gate lets the call through.
    pub(super) async fn acquire(&mut self, call: Call) -> CallPermit<'a> {
        self.ticket.acquire(call).await
    }

    /// The delay before the next try, or `None` once the budget is spent.
    pub(super) fn next_delay(&mut self) -> Option<Duration> {
        self.schedule.next_delay()
    }

    /// Adds to the budget the time that the gate held the request.
    pub(super) fn exclude(&mut self, held: Duration) {
        self.held += held;
        self.schedule.extend(held);
    }

    pub(super) fn was_mostly_held(&self) -> bool {
        self.held > self.started.elapsed() / 2
    }
}
