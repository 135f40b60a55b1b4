//! The exchanges, queues and bindings that a worker needs.

mod declare;
mod definition;
mod difference;
mod progress;
mod survey;
mod watch;

pub use self::definition::Topology;
pub(super) use self::watch::watch;
pub(crate) use self::{
    declare::{QueueCounts, queue_counts},
    difference::Difference,
    survey::{ObjectKind, ObjectState, SurveyedObject, TopologySurvey},
};
