//! Records API calls: the latest ones in full, and counts over all.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::BuildHasher,
    sync::Arc,
};

use serde::{Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use super::{
    call::Endpoint,
    stats::{SessionCount, Stats},
};

/// How many calls are kept.
const MAX_CALLS: usize = 10_000;

/// Headers and bodies of the calls that are kept, in bytes.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// How many distinct pairs of user and workflow, and distinct idempotency keys, are counted.
const MAX_DISTINCT: usize = 1_000_000;

/// An API call, and how the sandbox answered it.
///
/// It holds no secret: API keys and tokens appear as fingerprints. Equal secrets have equal
/// fingerprints within one run of the sandbox, and only there.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CallRecord {
    /// When the call arrived, in milliseconds since the sandbox started.
    pub(super) at_ms: u64,
    /// The endpoint that was called.
    #[serde(rename = "call")]
    pub(super) endpoint: Endpoint,
    /// The status of the answer; `None` if the connection was closed instead.
    pub(super) status: Option<u16>,
    /// Fingerprint of the `Authorization` header.
    pub(super) authorization: Option<Fingerprint>,
    /// Fingerprint of the token that was issued.
    pub(super) issued: Option<Fingerprint>,
    /// Id of the session that was made, or that a repeated call returned.
    pub(super) session_id: Option<String>,
    /// The `Idempotency-Key` header.
    pub(super) idempotency_key: Option<String>,
    /// The `traceparent` header.
    pub(super) traceparent: Option<String>,
    /// The `tracestate` header.
    pub(super) tracestate: Option<String>,
    /// The requested lifetime of a token or a deeplink, in seconds.
    pub(super) ttl: Option<u64>,
    /// The workflow of a session.
    pub(super) workflow_id: Option<String>,
    /// The user of a session.
    pub(super) external_user_id: Option<String>,
    /// The locale of a session.
    pub(super) locale: Option<String>,
    /// The metadata of a session as it was sent, `externalUserId` included.
    #[serde(serialize_with = "parsed")]
    pub(super) metadata: Option<Box<RawValue>>,
}

/// Stands for a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u64; 2]);

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [high, low] = self.0;
        serializer.collect_str(&format_args!("{high:016x}{low:016x}"))
    }
}

/// Parses the metadata. Done when calls are listed, as few calls ever are.
fn parsed<S: Serializer>(json: &Option<Box<RawValue>>, serializer: S) -> Result<S::Ok, S::Error> {
    let json: Option<Value> = json.as_ref().and_then(|json| serde_json::from_str(json.get()).ok());
    json.serialize(serializer)
}

impl CallRecord {
    pub(super) fn new(endpoint: Endpoint, at_ms: u64) -> Self {
        Self {
            at_ms,
            endpoint,
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

#[derive(Default)]
pub(super) struct Recorder {
    /// Each with the length of its headers and body.
    calls: VecDeque<(CallRecord, usize)>,
    bytes: usize,
    /// The counts, except those that [`Recorder::stats`] and the app add.
    pub(super) counts: Stats,
    /// The sessions of each user and workflow; at most [`MAX_DISTINCT`] pairs.
    sessions: HashMap<(Arc<str>, Arc<str>), u64>,
    /// Hashes, so that a million keys of any length take 8 MiB plus overhead.
    idempotency_keys: HashSet<u64>,
}

impl Recorder {
    /// Adds a call with `bytes` of headers and body, and drops the oldest ones that exceed a limit.
    pub(super) fn add(&mut self, call: CallRecord, bytes: usize) {
        self.count(&call);
        self.calls.push_back((call, bytes));
        self.bytes += bytes;
        while self.calls.len() > MAX_CALLS || self.bytes > MAX_BYTES {
            let Some((_, bytes)) = self.calls.pop_front() else {
                break;
            };
            self.bytes -= bytes;
        }
    }

    fn count(&mut self, call: &CallRecord) {
        let calls = match call.endpoint {
            Endpoint::Token => &mut self.counts.token_calls,
            Endpoint::Session => &mut self.counts.session_calls,
            Endpoint::Deeplink => &mut self.counts.deeplink_calls,
        };
        calls.add(call.status);
        self.counts.first_call_ms.get_or_insert(call.at_ms);
        self.counts.last_call_ms = Some(call.at_ms);
        if let Some(key) = &call.idempotency_key {
            let key = self.idempotency_keys.hasher().hash_one(key);
            if self.idempotency_keys.contains(&key) {
                self.counts.repeated_idempotency_keys += 1;
            } else if self.idempotency_keys.len() < MAX_DISTINCT {
                self.idempotency_keys.insert(key);
            }
        }
    }

    pub(super) fn add_session(&mut self, user: &Arc<str>, workflow: &Arc<str>) {
        self.counts.sessions_made += 1;
        let has_room = self.sessions.len() < MAX_DISTINCT;
        let pair = (Arc::clone(user), Arc::clone(workflow));
        match self.sessions.get_mut(&pair) {
            Some(count) => *count += 1,
            None if has_room => drop(self.sessions.insert(pair, 1)),
            None => {}
        }
    }

    /// The recorded calls, oldest first.
    pub(super) fn calls(&self) -> Vec<&CallRecord> {
        self.calls.iter().map(|(call, _)| call).collect()
    }

    /// The counts, with the sessions of each user.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.counts.clone();
        for ((user, workflow), &sessions) in &self.sessions {
            *stats.sessions_by_user.entry(user.to_string()).or_default() += sessions;
            stats.sessions_by_user_and_workflow.push(SessionCount {
                user_id: user.to_string(),
                workflow_id: workflow.to_string(),
                sessions,
            });
        }
        stats.sessions_by_user_and_workflow.sort_unstable();
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_call(at_ms: u64) -> CallRecord {
        CallRecord { status: Some(200), ..CallRecord::new(Endpoint::Token, at_ms) }
    }

    #[test]
    fn the_10000_newest_calls_are_kept() {
        let mut recorder = Recorder::default();
        for n in 0..10_003 {
            recorder.add(token_call(n), 0);
        }
        let calls = recorder.calls();
        assert_eq!(calls.len(), MAX_CALLS);
        assert_eq!(calls.first().map(|call| call.at_ms), Some(3));
        assert_eq!(recorder.stats().token_calls.by_status[&200], 10_003);
    }

    #[test]
    fn large_calls_displace_old_ones() {
        let mut recorder = Recorder::default();
        for n in 0..3 {
            recorder.add(token_call(n), MAX_BYTES / 2);
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
