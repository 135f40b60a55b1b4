//! What the platform issues for one person: a session, and what opens it.

use std::time::{Duration, SystemTime};

use secrecy::SecretString;

/// An ephemeral token: opaque, valid for one session of one user until it expires.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token, verbatim. A secret.
    pub value: SecretString,
    /// Never later than the token's real expiry: counted from before the token call.
    pub expires_at: SystemTime,
}

/// A session, and what opens it.
#[derive(Clone, Debug)]
pub struct Session {
    /// What opens it.
    pub access: Access,
    /// The platform's session id; in the two-call flow digit for digit if it is a number.
    pub id: String,
    /// When it was asked for. If a call was repeated, the first try that may have made it.
    pub made_at: SystemTime,
    /// When its link ends: with the session or with the token, whichever comes first.
    pub expires_at: SystemTime,
}

/// What opens a session. A secret.
#[derive(Clone, Debug)]
pub enum Access {
    /// The token that it was made with: the worker builds the link.
    Token(SecretString),
    /// The link, as the one-call flow returned it.
    Link(SecretString),
}

/// How long tokens and sessions live, and for how long links are handed out again.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The life that tokens are asked to have.
    pub token: Duration,
    /// The life of sessions, from the start of the call that makes them.
    pub session: Duration,
    /// The life that a link must have left to be handed out again.
    pub link_min: Duration,
}

impl Lifetimes {
    /// When the link of a session ends that began at `made_at`, with a token or a link that ends at `limit`.
    pub(crate) fn link_end(&self, made_at: SystemTime, limit: SystemTime) -> SystemTime {
        made_at.checked_add(self.session).map_or(limit, |end| end.min(limit))
    }

    /// The earliest start of a session that was made with a token.
    pub(crate) fn token_start(&self, expires_at: SystemTime) -> SystemTime {
        expires_at.checked_sub(self.token).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Until when a link is handed out: while more than the minimum life is left, or half of the life that it
    /// was granted if that is less.
    pub(crate) fn reusable_until(&self, session: &Session) -> SystemTime {
        let granted = session.expires_at.duration_since(session.made_at).unwrap_or_default();
        before(session.expires_at, self.link_min.min(granted / 2))
    }

    /// Until when a token is used for a session that may have begun at `made_at`.
    pub(crate) fn token_usable_until(&self, token: &Token, made_at: SystemTime) -> SystemTime {
        before(self.link_end(made_at, token.expires_at), self.link_min)
    }
}

fn before(end: SystemTime, life: Duration) -> SystemTime {
    end.checked_sub(life).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A call to the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Token,
    Session,
    /// The one call of the one-call flow.
    Deeplink,
}

impl Call {
    /// Returns whether this call makes a session, so that its failure may be its request's own fault.
    pub(crate) fn makes_session(self) -> bool {
        self != Self::Token
    }

    /// The value of the label `call` in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Deeplink => "deeplink",
        }
    }
}
