//! Which failed calls count towards an outage.
//!
//! A workflow, a locale or a user may fail every time while the platform serves everyone else. Its failures
//! must not stop the others, so a failed session call does not count if
//! - another workflow's session was made within the last minute, or
//! - the same caller has failed before, another caller's session was made since, and then the caller failed
//!   again. From then on its failures do not count while others are served at least every minute.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    caller_memory::CallerMemory,
    decision::{CallResult, Caller},
};
use crate::session::Call;

/// How long an answer proves that the platform works.
const PROOF: Duration = Duration::from_secs(60);
/// Failures in a row after which a workflow no longer proves that the platform works.
/// Without this limit, a platform that goes down would seem to work for another minute.
const DISPROOF: u8 = 3;
/// Disproved workflows, without a session in between, after which no other workflow proves anything either.
/// Two that worked until now are unlikely to fail for separate reasons.
const DISPROVED_WORKFLOWS: u8 = 2;
/// The same for workflows that have failed at least once. With many workflows, and calls that time out, no
/// single workflow reaches [`DISPROOF`] in time.
const FAILED_WORKFLOWS: usize = 3;
/// Limit of remembered workflows.
const MAX_WORKFLOWS: usize = 16;

/// Whether a failed call may be part of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// Yes, whatever else the platform answers.
    Always,
    /// Yes, unless another workflow is served: [`Evidence::is_other_workflow_well`].
    UnlessOthersAreServed,
    /// No.
    Never,
}

/// The recent answers to session calls, as far as they distinguish an outage from a request's own fault.
#[derive(Default)]
pub(super) struct Evidence {
    /// The workflows that were answered well, the latest first.
    well: Vec<WellWorkflow>,
    /// Workflows disproved since the latest session.
    disproved: u8,
    /// The latest session, and the latest one of another caller than that.
    successes: [Option<(u64, Instant)>; 2],
    /// The callers whose last call failed.
    failed: CallerMemory<FailedCaller>,
}

struct FailedCaller {
    last: Instant,
    /// It failed, another was served, and it failed again: the platform works, but not for this caller.
    is_at_fault: bool,
}

struct WellWorkflow {
    workflow: u64,
    answered_at: Instant,
    failures_since: u8,
    failed_at: Option<Instant>,
}

impl Evidence {
    /// Records that a session was made.
    pub(super) fn record_session(&mut self, caller: Caller, now: Instant) {
        self.disproved = 0;
        self.failed.remove(caller);
        if self.successes[0].is_none_or(|(id, _)| id != caller.id) {
            self.successes[1] = self.successes[0];
        }
        self.successes[0] = Some((caller.id, now));
        let known = self.well.iter().position(|well| well.workflow == caller.workflow);
        if let Some(place @ 1..) = known {
            self.well[..=place].rotate_right(1);
        } else if known.is_none() {
            self.well.truncate(MAX_WORKFLOWS - 1);
            let workflow = caller.workflow;
            let well =
                WellWorkflow { workflow, answered_at: now, failures_since: 0, failed_at: None };
            self.well.insert(0, well);
        }
        // Cannot fail: the workflow is the first one now.
        if let Some(well) = self.well.first_mut() {
            well.answered_at = now;
            well.failures_since = 0;
        }
    }

    /// Records a failed call. Returns whether it may count towards an outage.
    pub(super) fn record_failure(
        &mut self,
        caller: Caller,
        call: Call,
        result: CallResult,
        now: Instant,
    ) -> Weight {
        let before = self.failed.recall(caller, now);
        let failed_before = before.is_some();
        let is_at_fault = before.is_some_and(|before| {
            let mut others = self.other_sessions(caller, now);
            others.any(|at| before.is_at_fault || at > before.last)
        });
        self.failed.insert(caller, FailedCaller { last: now, is_at_fault }, now + PROOF, now);
        // Servers close connections in normal operation. If the platform does nothing else, the caller's
        // next call fails, too.
        if result == CallResult::Closed && !failed_before {
            return Weight::Never;
        }
        // Neither depends on the request.
        if call == Call::Token || result == CallResult::Unreachable {
            return Weight::Always;
        }
        // Neither does it prove anything about its workflow.
        if is_at_fault {
            return Weight::Never;
        }
        if let Some(at) = self.well.iter().position(|well| well.workflow == caller.workflow) {
            self.well[at].failures_since += 1;
            self.well[at].failed_at = Some(now);
            if self.well[at].failures_since >= DISPROOF {
                self.well.remove(at);
                self.disproved += 1;
            }
            let last_session = self.last_session();
            let failed = self.well.iter().filter(|well| well.failed_at > last_session).count();
            if self.disproved >= DISPROVED_WORKFLOWS
                || failed + usize::from(self.disproved) >= FAILED_WORKFLOWS
            {
                self.well.clear();
            }
        }
        Weight::UnlessOthersAreServed
    }

    /// When the latest session was made.
    pub(super) fn last_session(&self) -> Option<Instant> {
        self.successes[0].map(|(_, at)| at)
    }

    /// Returns whether another caller's session was made after `then`.
    pub(super) fn was_other_served_since(
        &self,
        caller: Caller,
        then: Instant,
        now: Instant,
    ) -> bool {
        self.other_sessions(caller, now).any(|at| at > then)
    }

    /// When sessions of other callers were made, as far as they prove anything.
    fn other_sessions(&self, caller: Caller, now: Instant) -> impl Iterator<Item = Instant> {
        let others = self.successes.iter().flatten().filter(move |(id, _)| *id != caller.id);
        others.map(|(_, at)| *at).filter(move |at| now - *at <= PROOF)
    }

    pub(super) fn is_other_workflow_well(&self, caller: Caller, now: Instant) -> bool {
        let mut others = self.well.iter().filter(|well| well.workflow != caller.workflow);
        others.any(|well| now - well.answered_at <= PROOF)
    }
}
