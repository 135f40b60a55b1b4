//! RabbitMQ: connections, topology, what comes in, what goes out, and how a delivery is settled.

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

pub(crate) use self::rpc::rpc;
pub use self::{
    connection::{Connection, FrameMax, Role},
    consumer::Consumer,
    dead_queue::{DeadLetter, DeadQueue},
    delivery::{Delivery, SUSPECT_REDELIVERIES},
    error::{BrokerError, PublishError},
    publisher::{Publisher, short_string},
    republish::Tried,
    server_properties::{ServerProperties, server_properties},
    session::{BrokerSession, ConsumerCount},
    settle::{Settled, Settlement, settle, until_confirmed},
    topology::{
        Difference, ObjectKind, ObjectState, QueueCounts, Survey, SurveyedObject, Topology,
    },
};
