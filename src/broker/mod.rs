//! RabbitMQ: connections, topology, what comes in, what goes out, and how a delivery is settled.

mod connection;
mod consumer;
mod delivery;
mod error;
mod headers;
mod publisher;
mod settle;
mod topology;

pub use self::{
    connection::{Attached, Role, connect},
    consumer::Consumer,
    delivery::Delivery,
    error::BrokerError,
    publisher::{PublishError, Publisher, bounded},
    settle::{Settled, Settlement, insist, settle},
    topology::{Topology, Traffic},
};
