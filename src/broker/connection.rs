//! Opens and closes one connection to RabbitMQ.
//!
//! lapin's recovery (`enable_auto_recover`) stays off: lapin 4.12 hangs on a half-open connection
//! without an error or event, and does not recover channels that RabbitMQ closed
//! (amqp-rs/lapin#450, open). Instead the worker drops a lost connection and opens a new session.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lapin::{ConnectionProperties, types::LongString, uri::AMQPUri};
use tokio::{runtime::Handle, time::timeout};

use super::{
    amqp::RPC_TIMEOUT,
    error::BrokerError,
    nodes::{Attempt, NodeCursor},
    socket::{self, Socket},
};
use crate::config::AmqpNodes;

/// Limit of an orderly close. After it the socket is shut down.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The AMQP heartbeat in seconds.
/// lapin ends a connection that was silent for twice as long.
const HEARTBEAT: u16 = 10;
/// How long the handshake may take after the first byte.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// How often a command tries nodes that stay silent.
const ROUNDS: usize = 3;
/// How often waiting code checks whether its connection is still open.
pub(super) const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The largest AMQP frame that a worker's connections accept.
///
/// lapin 4.12 allocates buffers for 2 × 32 frames for each connection: nearly 8 MiB at RabbitMQ's
/// default of 128 KiB, and 0.5 MiB at 8 KiB. (Not reported upstream.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameMax {
    /// Enough for the headers of nearly all messages, which must fit into one frame.
    /// Bodies may span several frames.
    Small,
    /// RabbitMQ's default, 128 KiB, or less if it proposes less. Its setting may be far larger: at
    /// 10,000,000 bytes, lapin's buffers would take 1.2 GiB.
    Large,
}

/// What a connection is for. RabbitMQ's management page shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Receives deliveries.
    Consumer(FrameMax),
    /// Publishes events, retry copies and dead letters.
    Publisher(FrameMax),
    /// Belongs to a command.
    Client,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Consumer(_) => "handoff consumer",
            Self::Publisher(_) => "handoff publisher",
            Self::Client => "handoff client",
        }
    }

    /// The largest `frame_max` in bytes.
    fn frame_max(self) -> u32 {
        match self {
            Self::Consumer(FrameMax::Small) => 8_192,
            // Larger than the consumer's: a copy has the headers of its delivery and more.
            Self::Publisher(FrameMax::Small) => 20_480,
            Self::Consumer(FrameMax::Large) | Self::Publisher(FrameMax::Large) | Self::Client => {
                131_072
            }
        }
    }
}

/// A connection to RabbitMQ. Dropping it closes it, too.
pub(crate) struct Connection {
    pub(crate) lapin: Arc<lapin::Connection>,
    socket: Option<Socket>,
    address: SocketAddr,
}

impl Connection {
    /// Connects a command: to one node after another, and to silent ones again with more time.
    pub(crate) async fn open_any(nodes: &AmqpNodes) -> Result<Self, BrokerError> {
        let mut cursor = NodeCursor::new();
        let mut failed = no_address("connect to RabbitMQ");
        for _ in 0..ROUNDS {
            let mut is_silent = false;
            for _ in nodes.nodes() {
                match Self::open(nodes, &cursor, Role::Client).await {
                    Err(error) if !error.is_login_refused() => {
                        is_silent |= error.is_silence();
                        failed = error;
                    }
                    result => return result,
                }
                cursor.advance();
            }
            if !is_silent {
                break;
            }
        }
        Err(failed)
    }

    /// Connects to a node, by one address of its host after another. The error holds no password.
    pub(super) async fn open(
        nodes: &AmqpNodes,
        cursor: &NodeCursor,
        role: Role,
    ) -> Result<Self, BrokerError> {
        let attempt = cursor.attempt(nodes);
        let operation = format!("connect to RabbitMQ{}", attempt.name);
        let resolved = timeout(RPC_TIMEOUT, socket::resolve(&attempt.node.uri)).await;
        let mut addresses = resolved
            .map_err(|_| BrokerError::timeout(&operation))?
            .map_err(|error| BrokerError::connecting(&operation, &error.into(), ""))?;
        let mut failed = no_address(&operation);
        if !addresses.is_empty() {
            let first = attempt.first_address % addresses.len();
            addresses.rotate_left(first);
        }
        for address in addresses {
            match Self::open_at(&attempt, address, role).await {
                Err(error) if !error.is_login_refused() => failed = error,
                result => return result,
            }
        }
        Err(failed)
    }

    /// Opens another connection to the same address.
    pub(super) async fn open_second(
        &self,
        nodes: &AmqpNodes,
        cursor: &NodeCursor,
        role: Role,
    ) -> Result<Self, BrokerError> {
        Self::open_at(&cursor.attempt(nodes), self.address, role).await
    }

    async fn open_at(
        attempt: &Attempt,
        address: SocketAddr,
        role: Role,
    ) -> Result<Self, BrokerError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(role.name()))
            .with_client_property("product".into(), LongString::from("handoff"))
            .with_client_property("version".into(), LongString::from(env!("CARGO_PKG_VERSION")));
        let uri = with_parameters(attempt.node.uri.clone(), role.frame_max());
        let operation = format!("connect to RabbitMQ{}", attempt.name);
        // Limits TCP, TLS and the AMQP handshake together, to 10 s like RabbitMQ's
        // `handshake_timeout`, and to more only for a slow first byte. lapin 4.12 has no limit: it
        // ignores `?connection_timeout=` when it connects asynchronously, and a silent peer holds the
        // handshake indefinitely (not reported upstream).
        let limit = RPC_TIMEOUT.max(attempt.first_byte + HANDSHAKE);
        let identity = attempt.identity.clone();
        let opening = socket::open(uri, identity, address, attempt.first_byte, properties);
        let (connection, socket) = timeout(limit, opening)
            .await
            .map_err(|_| BrokerError::timeout(&operation))?
            .map_err(|error| BrokerError::connecting(&operation, &error, attempt.on_close()))?;
        Ok(Self { lapin: Arc::new(connection), socket: Some(socket), address })
    }

    /// Closes the connection, within 1 s.
    pub(crate) async fn close(mut self) {
        self.disconnect().await;
    }

    /// The same, where the connection is still referred to.
    pub(super) async fn disconnect(&mut self) {
        close(Arc::clone(&self.lapin), self.socket.take()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let (Some(socket), Ok(runtime)) = (self.socket.take(), Handle::try_current()) {
            runtime.spawn(close(Arc::clone(&self.lapin), Some(socket)));
        }
    }
}

/// Closes the connection if it is still open, and shuts its socket down.
async fn close(connection: Arc<lapin::Connection>, socket: Option<Socket>) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
    drop(socket);
}

fn no_address(operation: &str) -> BrokerError {
    BrokerError::new(format!("cannot {operation}: the host was not found"))
}

/// The URL with our `frame_max`, and with our heartbeat unless it sets one.
/// A `frame_max` in the URL is ignored: with a smaller one, a delivery with large headers would break
/// every connection until RabbitMQ dead-letters it, and copies would lose headers.
fn with_parameters(mut uri: AMQPUri, frame_max: u32) -> AMQPUri {
    uri.query.frame_max = Some(frame_max);
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    uri
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{broker::republish::RESERVED_BYTES, config::amqp_nodes};

    #[test]
    fn a_received_frame_fits_into_a_published_one_with_our_headers() {
        let frame_max = |role: Role| usize::try_from(role.frame_max()).unwrap();
        let received = frame_max(Role::Consumer(FrameMax::Small));
        let published = frame_max(Role::Publisher(FrameMax::Small));
        assert!(received + RESERVED_BYTES <= published);
    }

    #[test]
    fn frame_max_is_ours_and_the_heartbeat_may_be_the_urls() {
        let query = |text: &str| {
            let nodes = amqp_nodes(text).unwrap();
            with_parameters(nodes.nodes()[0].uri.clone(), 9).query
        };
        let other = query("amqp://h?frame_max=8192&channel_max=7");
        assert_eq!(
            (other.frame_max, other.heartbeat, other.channel_max),
            (Some(9), Some(10), Some(7))
        );
        let own = query("amqp://h/%2f?frame_max=0&heartbeat=3");
        assert_eq!((own.frame_max, own.heartbeat), (Some(9), Some(3)));
    }
}
