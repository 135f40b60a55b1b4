//! RabbitMQ: connections, topology, what comes in, what goes out, and how a delivery is settled.

mod acks;
mod connection;
mod consumer;
mod copies;
mod dead_queue;
mod delivery;
mod error;
mod greeting;
mod pipeline;
mod publisher;
mod settle;
mod socket;
mod step;
mod topology;
mod upkeep;

pub(crate) use self::step::step;
pub use self::{
    connection::{Attached, Connection, Frames, Headcount, Role, connect},
    consumer::Consumer,
    copies::{DeadReason, Tried},
    dead_queue::{DeadLetter, DeadQueue},
    delivery::{Delivery, OFTEN},
    error::BrokerError,
    greeting::{Greeting, greeting},
    publisher::{PublishError, Publisher, bounded},
    settle::{Settled, Settlement, settle, until_confirmed},
    topology::{Difference, Found, State, Survey, Topology, Traffic},
};
