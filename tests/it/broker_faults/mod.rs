//! Faults of RabbitMQ: whatever happens, no request is lost and no resource leaks.

mod network;
mod one_connection;
mod operations;
mod restarts;
mod topology;
