//! Label values: fixed sets, so that the number of series is bounded.

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Ready,
    Reused,
    Failed,
    Retried,
}

impl Outcome {
    pub(super) const ALL: [Self; 4] = [Self::Ready, Self::Reused, Self::Failed, Self::Retried];

    /// The name in metrics, logs and spans.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Reused => "reused",
            Self::Failed => "failed",
            Self::Retried => "retried",
        }
    }
}

/// How the end of a verification ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EndingOutcome {
    /// A link is forgotten.
    Forgotten,
    /// There was no link, as far as is known.
    Unknown,
    /// The link belongs to a later session.
    Kept,
    Invalid,
}

impl EndingOutcome {
    pub(super) const ALL: [Self; 4] = [Self::Forgotten, Self::Unknown, Self::Kept, Self::Invalid];

    /// The name in metrics, logs and spans.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Forgotten => "forgotten",
            Self::Unknown => "unknown",
            Self::Kept => "kept",
            Self::Invalid => "invalid",
        }
    }
}

/// Whether the cache had a link for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// The cache had a link that the request may use.
    Hit,
    /// The worker must make one.
    Miss,
}

impl Lookup {
    pub(super) const ALL: [Self; 2] = [Self::Hit, Self::Miss];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

/// The kind of a published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PublishKind {
    /// `handoff.ready`.
    Ready,
    /// `handoff.failed`.
    Failed,
    /// A copy of a request, to a retry queue.
    Retry,
    /// A copy of a request, to the end of the request queue.
    Postponed,
    /// A copy of a request, to the dead queue.
    DeadLetter,
}

impl PublishKind {
    pub(super) const ALL: [Self; 5] =
        [Self::Ready, Self::Failed, Self::Retry, Self::Postponed, Self::DeadLetter];

    /// The name in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::Postponed => "postponed",
            Self::DeadLetter => "dead_letter",
        }
    }
}
