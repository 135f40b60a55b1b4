//! Counts of what happened.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts since the start or the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Calls for a token.
    pub token_calls: CallCounts,
    /// Calls for a session.
    pub session_calls: CallCounts,
    /// Calls of the one-call flow.
    pub deeplink_calls: CallCounts,
    /// Calls of the webhook, tries included; `closed` counts those without an answer.
    #[serde(default)]
    pub webhook_calls: CallCounts,
    /// Tokens issued, whether or not the caller received the answer.
    pub tokens_issued: u64,
    /// Sessions made, whether or not the caller received the answer.
    pub sessions_made: u64,
    /// Sessions made by external user id, for the first million pairs of user and workflow.
    ///
    /// [`Stats::sessions_made`] counts all.
    pub sessions_by_user: BTreeMap<String, u64>,
    /// Sessions made by external user id and workflow, sorted; at most a million pairs.
    pub sessions_by_user_and_workflow: Vec<SessionCount>,
    /// How often a page was shown, error pages of `/capture` and `/mobile` included.
    pub pages_opened: u64,
    /// When the first call arrived, in milliseconds since the start.
    pub first_call_ms: Option<u64>,
    /// When the last call arrived, in milliseconds since the start.
    pub last_call_ms: Option<u64>,
    /// The highest number of calls in flight at once.
    pub max_concurrent_calls: usize,
    /// Calls with an `Idempotency-Key` that was seen before, among the first million keys.
    pub repeated_idempotency_keys: u64,
    /// How long the sandbox has been running, in milliseconds.
    pub uptime_ms: u64,
}

/// Counts of the answers of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallCounts {
    /// All calls.
    pub total: u64,
    /// Calls that were answered, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Calls that were closed without an answer.
    pub closed: u64,
}

/// The sessions made for one user and workflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCount {
    /// The external user id.
    pub user_id: String,
    /// The workflow id.
    pub workflow_id: String,
    /// The number of sessions.
    pub sessions: u64,
}

impl CallCounts {
    /// Counts a call by the status of its answer; `None`: the connection was closed instead.
    pub(super) fn add(&mut self, status: Option<u16>) {
        self.total += 1;
        match status {
            Some(status) => *self.by_status.entry(status).or_default() += 1,
            None => self.closed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{
        call::Endpoint,
        record::{CallRecord, Recorder},
    };

    #[test]
    fn counts_are_grouped_by_status_user_and_workflow() {
        let mut recorder = Recorder::default();
        for (status, at) in [(Some(200), 5), (None, 6), (Some(503), 7), (Some(200), 8)] {
            recorder.add(CallRecord { status, ..CallRecord::new(Endpoint::Session, at) }, 0);
        }
        for (user, workflow) in [("bob", "w"), ("ann", "w"), ("ann", "v"), ("ann", "w")] {
            recorder.add_session(&user.into(), &workflow.into());
        }
        let stats = recorder.stats();
        assert_eq!(stats.token_calls, CallCounts::default());
        assert_eq!(stats.session_calls.total, 4);
        assert_eq!(stats.session_calls.by_status, BTreeMap::from([(200, 2), (503, 1)]));
        assert_eq!(stats.session_calls.closed, 1);
        assert_eq!((stats.first_call_ms, stats.last_call_ms), (Some(5), Some(8)));
        assert_eq!(stats.sessions_made, 4);
        assert_eq!(
            stats.sessions_by_user,
            BTreeMap::from([("ann".to_owned(), 3), ("bob".to_owned(), 1)])
        );
        let pairs: Vec<_> = stats
            .sessions_by_user_and_workflow
            .iter()
            .map(|pair| (pair.user_id.as_str(), pair.workflow_id.as_str(), pair.sessions))
            .collect();
        assert_eq!(pairs, [("ann", "v", 1), ("ann", "w", 2), ("bob", "w", 1)]);
    }

    #[test]
    fn stats_survive_a_json_round_trip() {
        let mut recorder = Recorder::default();
        recorder.add(CallRecord { status: Some(401), ..CallRecord::new(Endpoint::Token, 1) }, 0);
        let stats = recorder.stats();
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["tokenCalls"]["byStatus"]["401"], 1);
        assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    }
}
