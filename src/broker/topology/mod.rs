//! The exchanges, queues and bindings that a worker needs.

mod declare;
mod definition;
mod difference;
mod survey;

pub(super) use self::declare::watch;
pub use self::definition::Topology;
pub(crate) use self::{
    declare::{QueueCounts, queue_counts},
    difference::Difference,
    survey::{ObjectKind, ObjectState, SurveyedObject, TopologySurvey},
};
