//! Which refused calls of the one-call flow are the request's own fault.
//!
//! That call carries the API key, like a token call, and makes a session, like a session call. A 403 or a 404
//! may therefore mean the key or the URL, which concerns everyone, or the workflow of one request.
//! - 401, 405 and redirects never depend on the request.
//! - A 403 pauses calls. If another workflow is answered well in that pause, the workflow is at fault.
//! - A 404 pauses calls until the first good answer, which shows that the URL is right. After it, the workflow is at
//!   fault, unless workflows that were answered well before get five in a row: then the URL has changed.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::decision::{Caller, Refusal};

/// Answers of 404 in a row to workflows that were answered well before, after which calls pause.
const MISSING_IN_A_ROW: u32 = 5;
/// How long another workflow's good answer proves that the platform accepts the key.
const PROOF: Duration = Duration::from_secs(60);
/// Limit of remembered workflows.
const MAX_WORKFLOWS: usize = 4_096;

#[derive(Default)]
pub(super) struct Refusals {
    /// Workflows that were answered well.
    well: HashSet<u64>,
    /// The latest good answers, of two workflows.
    latest: [Option<(u64, Instant)>; 2],
    missing_in_a_row: u32,
    /// Workflows with a 403 in the present pause.
    refused: HashSet<u64>,
    /// Workflows with a 403 in a pause in which another workflow was answered well.
    at_fault: HashSet<u64>,
    /// Whether calls are paused, and the pause began with a 404.
    is_missing: bool,
}

impl Refusals {
    /// Returns whether the request is at fault.
    pub(super) fn blame(&mut self, caller: Caller, refusal: Refusal, now: Instant) -> bool {
        match refusal {
            Refusal::Setting => false,
            Refusal::Forbidden => {
                let mut others =
                    self.latest.iter().flatten().filter(|(other, _)| *other != caller.workflow);
                self.at_fault.contains(&caller.workflow) && others.any(|(_, at)| now - *at <= PROOF)
            }
            Refusal::Missing if self.is_missing || !self.has_good_answer() => false,
            Refusal::Missing => {
                if self.well.contains(&caller.workflow) {
                    self.missing_in_a_row += 1;
                }
                self.missing_in_a_row < MISSING_IN_A_ROW
            }
        }
    }

    fn has_good_answer(&self) -> bool {
        self.latest[0].is_some()
    }

    /// Records a refusal that paused calls, or came in the pause.
    pub(super) fn record_refused(&mut self, caller: Caller, refusal: Refusal, begins_pause: bool) {
        if begins_pause {
            self.refused.clear();
            self.at_fault.clear();
            self.is_missing = refusal == Refusal::Missing;
        }
        if refusal == Refusal::Forbidden && self.refused.len() < MAX_WORKFLOWS {
            self.refused.insert(caller.workflow);
        }
    }

    /// Records a good answer. Returns whether it alone shows that the URL is right, so that a pause ends that began
    /// with a 404: no earlier answer did.
    pub(super) fn record_good(&mut self, caller: Caller, now: Instant) -> bool {
        let proves_url = self.is_missing && !self.has_good_answer();
        self.missing_in_a_row = 0;
        self.at_fault.remove(&caller.workflow);
        if self.latest[0].is_none_or(|(latest, _)| latest != caller.workflow) {
            self.latest[1] = self.latest[0];
        }
        self.latest[0] = Some((caller.workflow, now));
        if self.well.len() < MAX_WORKFLOWS {
            self.well.insert(caller.workflow);
        }
        proves_url
    }

    /// Records that the answer to this caller's probe has ended the pause.
    pub(super) fn end_pause(&mut self, caller: Caller) {
        self.at_fault = std::mem::take(&mut self.refused);
        self.at_fault.remove(&caller.workflow);
        self.is_missing = false;
    }
}
