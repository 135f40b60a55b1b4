//! What the platform remembers: tokens, and every session with the call that made it.

use std::{collections::HashMap, time::Instant};

use crate::harm::Trouble;

/// A session, and the call that made it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    /// User and workflow.
    pub pair: (String, String),
    pub request_id: String,
    /// The worker that asked, by the name it was given.
    pub worker: String,
    /// When the same worker began on it: with the token call, if it made that itself.
    pub begun: Instant,
    pub made: Instant,
    /// When the call was over: answered, or the caller gone.
    pub over: Option<Instant>,
    /// Whether the session was in an answer.
    pub answered: bool,
    /// How the call was made to fail.
    pub trouble: Option<Trouble>,
}

#[derive(Default)]
pub struct Book {
    pub sessions: Vec<Session>,
    tokens: HashMap<String, Token>,
    /// The session that a call with this `Idempotency-Key` made.
    keys: HashMap<String, usize>,
}

struct Token {
    worker: String,
    begun: Instant,
    served: Option<usize>,
}

impl Book {
    /// Makes a token for a worker that began to ask for it then.
    pub fn issue(&mut self, worker: String, begun: Instant) -> String {
        let token = format!("Token {} é+/=&%", self.tokens.len());
        self.tokens.insert(token.clone(), Token { worker, begun, served: None });
        token
    }

    /// Makes the one session that a token serves, or finds the one that a call with the same key
    /// made before. `None`: the token is no good.
    pub fn open(&mut self, token: &str, key: Option<String>, asked: Session) -> Option<usize> {
        let number = self.sessions.len();
        let token = self.tokens.get_mut(token)?;
        if token.served.is_some() {
            let made = key.and_then(|key| self.keys.get(&key).copied());
            return token.served.filter(|_| token.served == made);
        }
        token.served = Some(number);
        let begun = if token.worker == asked.worker { token.begun } else { asked.begun };
        self.sessions.push(Session { id: format!("session-{number}"), begun, ..asked });
        if let Some(key) = key {
            self.keys.insert(key, number);
        }
        Some(number)
    }

    /// A call that made or found a session is over.
    pub fn over(&mut self, number: usize, answered: bool) {
        let session = &mut self.sessions[number];
        session.over.get_or_insert_with(Instant::now);
        session.answered |= answered;
    }
}
