//! What the platform gives for one person: a token, and with it a session.

use std::time::SystemTime;

use secrecy::SecretString;

/// An ephemeral token: opaque, good for one session of one user until it ends.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token, verbatim. A secret.
    pub value: SecretString,
    /// No later than the token really ends: counted from before it was asked for.
    pub expires_at: SystemTime,
}

/// A session that waits for its person. The link to it ends with its token.
#[derive(Clone, Debug)]
pub struct Session {
    /// The token that opens it.
    pub token: Token,
    /// The platform's id for it; numbers are kept as they were written.
    pub id: String,
}

/// Which of the platform's two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Asks for a token.
    Token,
    /// Makes a session with it.
    Session,
}

impl Call {
    /// The call's name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
        }
    }
}
