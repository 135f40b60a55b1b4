//! RabbitMQ: connections, topology, consuming, settling and publishing.

mod acks;
mod amqp;
mod connection;
mod consumer;
mod dead_queue;
mod delivery;
mod endings;
mod error;
mod large;
mod log;
mod loss;
mod nodes;
mod pipeline;
mod publisher;
mod reply;
mod republish;
mod server_properties;
mod session;
mod settle;
mod socket;
mod topology;

pub(crate) use self::{
    amqp::{rpc, short_string},
    connection::{Connection, FrameMax},
    consumer::Consumer,
    dead_queue::{DeadLetter, DeadQueue, MAX_HOLD},
    delivery::{Delivery, SUSPECT_REDELIVERIES},
    endings::{ENDINGS_PREFETCH, EndingSettlement, EndingSource, move_ending, settle_ending},
    error::BrokerError,
    large::MAX_WHEN_FETCHING,
    nodes::NodeCursor,
    republish::{DeadLetterReason, Tried},
    server_properties::{ServerProperties, server_properties},
    session::BrokerSession,
    settle::{PostponeReason, Settled, Settlement, settle, until_confirmed},
    topology::{
        Difference, ObjectKind, ObjectState, QueueCounts, SurveyedObject, TopologySurvey,
        queue_counts,
    },
};
pub use self::{error::PublishError, publisher::Publisher, topology::Topology};
