//! Faults of RabbitMQ: whatever happens, no request is lost and no resource leaks.

mod consumer_timeout;
mod network;
mod one_connection;
mod operations;
mod restarts;
mod suspects;
mod topology;
