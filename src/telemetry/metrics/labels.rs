//! The values of labels: fixed sets, so that the number of series is bounded.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the reference's")]
pub enum Outcome {
    Ready,
    Reused,
    Failed,
    Retried,
}

impl Outcome {
    pub(super) const ALL: [Self; 4] = [Self::Ready, Self::Reused, Self::Failed, Self::Retried];

    /// The outcome's name, in metrics and logs alike.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Reused => "reused",
            Self::Failed => "failed",
            Self::Retried => "retried",
        }
    }
}

/// What the cache answers to a request for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// A link that will do.
    Hit,
    /// None: one is to be made.
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

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublishKind {
    /// `handoff.ready`.
    Ready,
    /// `handoff.failed`.
    Failed,
    /// A copy for a retry queue.
    Retry,
    /// A copy for the end of the request queue.
    Postponed,
    /// A copy for the dead queue.
    DeadLetter,
}

impl PublishKind {
    pub(super) const ALL: [Self; 5] =
        [Self::Ready, Self::Failed, Self::Retry, Self::Postponed, Self::DeadLetter];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::Postponed => "postponed",
            Self::DeadLetter => "dead_letter",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabel {
    pub(super) call: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallOutcomeLabel {
    pub(super) call: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallReasonLabel {
    pub(super) call: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindOutcomeLabel {
    pub(super) kind: &'static str,
    pub(super) outcome: &'static str,
}

/// The counters of these labels: there from the start, at 0, and found again without a look into the
/// family, which costs a lock.
pub(super) fn resolved<L, const N: usize>(
    family: &Family<L, Counter>,
    labels: [L; N],
) -> [Counter; N]
where
    L: Clone + std::hash::Hash + Eq,
{
    labels.map(|label| family.get_or_create_owned(&label))
}
