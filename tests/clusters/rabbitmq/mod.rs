//! RabbitMQ clusters of three nodes.
