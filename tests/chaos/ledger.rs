//! Records every session that the platform made, with the call that made it.

use std::{collections::HashMap, time::Instant};

use crate::faults::PlatformFault;

/// A session, and the call that made it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    /// User and workflow.
    pub pair: (String, String),
    pub request_id: String,
    /// The name of the worker that made the call.
    pub worker: String,
    /// When that worker started on it: at its token call, or at the session call if the token came
    /// from another worker.
    pub started: Instant,
    pub made: Instant,
    /// When the first call for it ended, by an answer or by the caller closing the connection.
    pub ended: Option<Instant>,
    /// Whether an answer contained the session.
    pub answered: bool,
    /// The fault of the platform during the call.
    pub fault: Option<PlatformFault>,
}

#[derive(Default)]
pub struct Ledger {
    sessions: Vec<Session>,
    by_id: HashMap<String, usize>,
    tokens: HashMap<String, TokenCall>,
}

struct TokenCall {
    worker: String,
    started: Instant,
}

impl Ledger {
    pub fn add_token(&mut self, token: String, worker: String, started: Instant) {
        self.tokens.insert(token, TokenCall { worker, started });
    }

    /// Adds a session, unless a repeated call returned it.
    pub fn add_session(&mut self, token: &str, mut session: Session) {
        if self.by_id.contains_key(&session.id) {
            return;
        }
        if let Some(call) = self.tokens.get(token).filter(|call| call.worker == session.worker) {
            session.started = call.started;
        }
        self.by_id.insert(session.id.clone(), self.sessions.len());
        self.sessions.push(session);
    }

    /// Records the end of a call that returned a session.
    pub fn end_call(&mut self, session_id: &str, answered: bool) {
        let session = &mut self.sessions[self.by_id[session_id]];
        session.ended.get_or_insert_with(Instant::now);
        session.answered |= answered;
    }

    /// All sessions, in the order in which they were made.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }
}
