//! What the platform issues for one person: a token, and a session made with it.

use std::time::SystemTime;

use secrecy::SecretString;

/// An ephemeral token: opaque, valid for one session of one user until it expires.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token, verbatim. A secret.
    pub value: SecretString,
    /// Never later than the token's real expiry: counted from before the token call.
    pub expires_at: SystemTime,
}

/// A session. Its link expires with its token.
#[derive(Clone, Debug)]
pub struct Session {
    /// The token that opens it.
    pub token: Token,
    /// The platform's session id, digit for digit if it is a number.
    pub id: String,
    /// When it was asked for. The start of 1970 where that is not known.
    pub made_at: SystemTime,
}

/// A call to the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Token,
    Session,
}

impl Call {
    /// The value of the label `call` in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
        }
    }
}
