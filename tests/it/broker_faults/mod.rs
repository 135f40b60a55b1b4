//! Faults of RabbitMQ: whatever happens, no request is lost and no resource leaks.

mod network;
mod operations;
mod restarts;
mod topology;
