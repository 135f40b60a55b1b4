//! RabbitMQ: connections, topology, what comes in, what goes out, and how a delivery is settled.

mod acks;
mod connection;
mod consumer;
mod dead_queue;
mod delivery;
mod error;
mod greeting;
mod pipeline;
mod publisher;
mod republish;
mod settle;
mod socket;
mod step;
mod topology;
mod upkeep;

pub(crate) use self::step::step;
pub use self::{
    connection::{BrokerSession, Connection, ConsumerCount, Frames, Role, connect},
    consumer::Consumer,
    dead_queue::{DeadLetter, DeadQueue},
    delivery::{Delivery, SUSPECT_REDELIVERIES},
    error::BrokerError,
    greeting::{Greeting, greeting},
    publisher::{PublishError, Publisher, bounded},
    republish::{DeadReason, Tried},
    settle::{Settled, Settlement, settle, until_confirmed},
    topology::{Difference, Found, State, Survey, Topology, Traffic},
};
