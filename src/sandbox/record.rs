//! What the sandbox was asked: the last calls, and counts over all of them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::BuildHasher,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How many calls are kept, the newest ones.
const MOST_CALLS: usize = 10_000;

/// How much text the kept calls may hold together, in bytes.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// How many pairs of user and workflow, and how many idempotency keys, are told apart.
const MOST_TOLD_APART: usize = 1_000_000;

/// One of the platform's two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// `POST /api/device/ephemeral`
    Token,
    /// `POST /api/sessions`
    Session,
}

/// One call: what was sent, and what became of it.
///
/// It holds no secret: keys and tokens appear as fingerprints, which are the same for the same
/// secret as long as the sandbox runs, and mean nothing elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// When it came, in milliseconds since the sandbox started.
    pub at_ms: u64,
    /// Which call.
    pub call: Call,
    /// What was answered; `None`: the connection was closed instead.
    pub status: Option<u16>,
    /// Fingerprint of the `Authorization` header.
    pub authorization: Option<String>,
    /// Fingerprint of the token that was made.
    pub issued: Option<String>,
    /// Id of the session that was made, or that was answered again.
    pub session_id: Option<String>,
    /// The `Idempotency-Key` header.
    pub idempotency_key: Option<String>,
    /// The `traceparent` header.
    pub traceparent: Option<String>,
    /// The `tracestate` header.
    pub tracestate: Option<String>,
    /// The token's asked lifetime, in seconds.
    pub ttl: Option<u64>,
    /// The session's workflow.
    pub workflow_id: Option<String>,
    /// The session's user.
    pub external_user_id: Option<String>,
    /// The session's locale.
    pub locale: Option<String>,
    /// The session's metadata as it was sent, `externalUserId` included.
    pub metadata: Option<Value>,
}

impl CallRecord {
    pub(super) fn new(call: Call, at_ms: u64) -> Self {
        Self {
            at_ms,
            call,
            status: None,
            authorization: None,
            issued: None,
            session_id: None,
            idempotency_key: None,
            traceparent: None,
            tracestate: None,
            ttl: None,
            workflow_id: None,
            external_user_id: None,
            locale: None,
            metadata: None,
        }
    }
}

/// Remembers calls.
#[derive(Default)]
pub(super) struct Recorder {
    /// Each with the length of what was sent.
    calls: VecDeque<(CallRecord, usize)>,
    bytes: usize,
    pub(super) counts: Counts,
}

/// Counts since the start, or since they were reset.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) token: HashMap<Option<u16>, u64>,
    pub(super) session: HashMap<Option<u16>, u64>,
    pub(super) tokens_issued: u64,
    pub(super) sessions_made: u64,
    /// By user and workflow.
    pub(super) sessions: HashMap<(Arc<str>, Arc<str>), u64>,
    pub(super) pages_opened: u64,
    pub(super) first_call_ms: Option<u64>,
    pub(super) last_call_ms: Option<u64>,
    pub(super) repeated_idempotency_keys: u64,
    /// Their hashes: a million keys of any length take little room.
    idempotency_keys: HashSet<u64>,
}

impl Recorder {
    /// Adds a call, for which so many bytes were sent. Old ones go to make room.
    pub(super) fn add(&mut self, call: CallRecord, bytes: usize) {
        self.counts.add(&call);
        self.calls.push_back((call, bytes));
        self.bytes += bytes;
        while self.calls.len() > MOST_CALLS || self.bytes > MOST_BYTES {
            let Some((_, bytes)) = self.calls.pop_front() else {
                break;
            };
            self.bytes -= bytes;
        }
    }

    /// The calls that are kept, oldest first.
    pub(super) fn calls(&self) -> Vec<CallRecord> {
        self.calls.iter().map(|(call, _)| call.clone()).collect()
    }
}

impl Counts {
    fn add(&mut self, call: &CallRecord) {
        let by_status = match call.call {
            Call::Token => &mut self.token,
            Call::Session => &mut self.session,
        };
        *by_status.entry(call.status).or_default() += 1;
        self.first_call_ms.get_or_insert(call.at_ms);
        self.last_call_ms = Some(call.at_ms);
        if let Some(key) = &call.idempotency_key {
            let key = self.idempotency_keys.hasher().hash_one(key);
            if self.idempotency_keys.contains(&key) {
                self.repeated_idempotency_keys += 1;
            } else if self.idempotency_keys.len() < MOST_TOLD_APART {
                self.idempotency_keys.insert(key);
            }
        }
    }

    /// Counts a new session.
    pub(super) fn session_made(&mut self, user: &Arc<str>, workflow: &Arc<str>) {
        self.sessions_made += 1;
        let has_room = self.sessions.len() < MOST_TOLD_APART;
        let pair = (Arc::clone(user), Arc::clone(workflow));
        match self.sessions.get_mut(&pair) {
            Some(count) => *count += 1,
            None if has_room => drop(self.sessions.insert(pair, 1)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_call(at_ms: u64) -> CallRecord {
        CallRecord { status: Some(200), ..CallRecord::new(Call::Token, at_ms) }
    }

    #[test]
    fn the_newest_calls_are_kept() {
        let mut recorder = Recorder::default();
        for n in 0..10_003 {
            recorder.add(token_call(n), 0);
        }
        let calls = recorder.calls();
        assert_eq!(calls.len(), MOST_CALLS);
        assert_eq!(calls.first().map(|call| call.at_ms), Some(3));
        assert_eq!(recorder.counts.token[&Some(200)], 10_003);
    }

    #[test]
    fn large_calls_push_old_calls_out() {
        let mut recorder = Recorder::default();
        for n in 0..3 {
            recorder.add(token_call(n), MOST_BYTES / 2);
        }
        assert_eq!(recorder.calls().len(), 2);
    }

    #[test]
    fn repeated_idempotency_keys_are_counted() {
        let mut recorder = Recorder::default();
        for key in [None, Some("a"), Some("b"), Some("a"), None, Some("a")] {
            let idempotency_key = key.map(str::to_owned);
            recorder.add(CallRecord { idempotency_key, ..token_call(0) }, 0);
        }
        assert_eq!(recorder.counts.repeated_idempotency_keys, 2);
    }
}
