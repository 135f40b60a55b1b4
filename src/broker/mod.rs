//! RabbitMQ: connections, topology, consuming, settling and publishing.

mod acks;
mod connection;
mod consumer;
mod dead_queue;
mod delivery;
mod error;
mod log;
mod pipeline;
mod publisher;
mod republish;
mod rpc;
mod server_properties;
mod session;
mod settle;
mod socket;
mod topology;
mod values;

pub(crate) use self::{
    connection::{Connection, FrameMax, Role},
    dead_queue::{DeadLetter, DeadQueue},
    delivery::{Delivery, SUSPECT_REDELIVERIES},
    error::BrokerError,
    republish::Tried,
    rpc::rpc,
    server_properties::{ServerProperties, server_properties},
    session::{BrokerSession, ConsumerCount},
    settle::{Settled, Settlement, settle, until_confirmed},
    topology::{Difference, ObjectKind, ObjectState, QueueCounts, SurveyedObject, TopologySurvey},
    values::short_string,
};
pub use self::{error::PublishError, publisher::Publisher, topology::Topology};
