//! The counts, as they are shown.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::record::Counts;

/// What happened since the start, or since the counts were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Calls for a token.
    pub token_calls: CallCounts,
    /// Calls for a session.
    pub session_calls: CallCounts,
    /// Tokens made, whether the caller learnt of them or not.
    pub tokens_issued: u64,
    /// Sessions made, whether the caller learnt of them or not.
    pub sessions_made: u64,
    /// Sessions made, by external user id. Only the first million pairs of user and workflow are
    /// told apart; [`Stats::sessions_made`] counts all.
    pub sessions_by_user: BTreeMap<String, u64>,
    /// Sessions made, by external user id and workflow; sorted.
    pub sessions_by_user_and_workflow: Vec<PairSessions>,
    /// How often a page was shown, error pages included.
    pub pages_opened: u64,
    /// When the first call came, in milliseconds since the start.
    pub first_call_ms: Option<u64>,
    /// When the last call came, in milliseconds since the start.
    pub last_call_ms: Option<u64>,
    /// Most calls that were being served at one time.
    pub max_concurrent_calls: usize,
    /// Calls whose `Idempotency-Key` had been seen before (of the first million keys).
    pub repeated_idempotency_keys: u64,
    /// How long the sandbox has been running, in milliseconds.
    pub uptime_ms: u64,
}

/// How calls of one kind were answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallCounts {
    /// All of them.
    pub total: u64,
    /// Answered, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Closed without an answer.
    pub closed: u64,
}

/// Sessions made for a user and workflow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PairSessions {
    /// The external user id.
    pub user_id: String,
    /// The workflow id.
    pub workflow_id: String,
    /// How many.
    pub sessions: u64,
}

impl Stats {
    pub(super) fn of(counts: &Counts, max_concurrent_calls: usize, uptime_ms: u64) -> Self {
        let mut by_user = BTreeMap::new();
        let mut pairs = Vec::with_capacity(counts.sessions.len());
        for ((user, workflow), &sessions) in &counts.sessions {
            *by_user.entry(user.to_string()).or_default() += sessions;
            let (user_id, workflow_id) = (user.to_string(), workflow.to_string());
            pairs.push(PairSessions { user_id, workflow_id, sessions });
        }
        pairs.sort_unstable();
        Self {
            token_calls: CallCounts::of(&counts.token),
            session_calls: CallCounts::of(&counts.session),
            tokens_issued: counts.tokens_issued,
            sessions_made: counts.sessions_made,
            sessions_by_user: by_user,
            sessions_by_user_and_workflow: pairs,
            pages_opened: counts.pages_opened,
            first_call_ms: counts.first_call_ms,
            last_call_ms: counts.last_call_ms,
            max_concurrent_calls,
            repeated_idempotency_keys: counts.repeated_idempotency_keys,
            uptime_ms,
        }
    }
}

impl CallCounts {
    fn of(counts: &HashMap<Option<u16>, u64>) -> Self {
        Self {
            total: counts.values().sum(),
            by_status: counts.iter().filter_map(|(&s, &n)| s.map(|status| (status, n))).collect(),
            closed: counts.get(&None).copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::record::{Call, CallRecord, Recorder};

    #[test]
    fn counts_are_told_by_status_user_and_workflow() {
        let mut recorder = Recorder::default();
        for (status, at) in [(Some(200), 5), (None, 6), (Some(503), 7), (Some(200), 8)] {
            recorder.add(CallRecord { status, ..CallRecord::new(Call::Session, at) }, 0);
        }
        for (user, workflow) in [("bob", "w"), ("ann", "w"), ("ann", "v"), ("ann", "w")] {
            recorder.counts.session_made(&user.into(), &workflow.into());
        }
        let stats = Stats::of(&recorder.counts, 3, 9);
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
    fn stats_read_back_as_they_are_written() {
        let mut recorder = Recorder::default();
        recorder.add(CallRecord { status: Some(401), ..CallRecord::new(Call::Token, 1) }, 0);
        let stats = Stats::of(&recorder.counts, 1, 2);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["tokenCalls"]["byStatus"]["401"], 1);
        assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    }
}
