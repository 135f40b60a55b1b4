//! Opens and closes one connection to RabbitMQ.
//!
//! lapin's recovery (`enable_auto_recover`) stays off: lapin 4.12 hangs on a half-open connection
//! without an error or event, and does not recover channels that RabbitMQ closed
//! (amqp-rs/lapin#450, open). Instead the worker drops a lost connection and opens a new session.

use std::{sync::Arc, time::Duration};

use lapin::{ConnectionProperties, types::LongString, uri::AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use tokio::{runtime::Handle, time::timeout};
use url::Url;

use super::{
    amqp::rpc,
    error::BrokerError,
    socket::{self, Socket},
};

/// Limit of an orderly close. After it the socket is shut down.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The AMQP heartbeat in seconds.
/// lapin ends a connection that was silent for twice as long.
const HEARTBEAT: &str = "10";
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
    fn frame_max(self) -> &'static str {
        match self {
            Self::Consumer(FrameMax::Small) => "8192",
            // Larger than the consumer's: a copy has the headers of its delivery and more.
            Self::Publisher(FrameMax::Small) => "20480",
            Self::Consumer(FrameMax::Large) | Self::Publisher(FrameMax::Large) | Self::Client => {
                "131072"
            }
        }
    }
}

/// A connection to RabbitMQ. Dropping it closes it, too.
pub(crate) struct Connection {
    pub(crate) lapin: Arc<lapin::Connection>,
    socket: Option<Socket>,
}

impl Connection {
    /// Connects within 10 s, or returns an error. The error holds no password.
    pub(crate) async fn open(url: &SecretString, role: Role) -> Result<Self, BrokerError> {
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(role.name()))
            .with_client_property("product".into(), LongString::from("handoff"))
            .with_client_property("version".into(), LongString::from(env!("CARGO_PKG_VERSION")));
        let Ok(uri) = with_parameters(url, role.frame_max()).parse::<AMQPUri>() else {
            return Err(BrokerError::new("the RabbitMQ URL is invalid: check HANDOFF_AMQP_URL"));
        };
        // `rpc` limits name resolution, TCP, TLS and the AMQP handshake together to 10 s, like
        // RabbitMQ's `handshake_timeout`. lapin 4.12 has no limit: it ignores
        // `?connection_timeout=` when it connects asynchronously, and a silent peer holds the
        // handshake indefinitely (not reported upstream).
        let (connection, socket) =
            rpc("connect to RabbitMQ", socket::open(uri, properties)).await?;
        Ok(Self { lapin: Arc::new(connection), socket: Some(socket) })
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

/// The URL with our `frame_max`, and with our heartbeat unless it sets one.
/// A `frame_max` in the URL is ignored: with a smaller one, a delivery with large headers would break
/// every connection until RabbitMQ dead-letters it, and copies would lose headers.
fn with_parameters(url: &SecretString, frame_max: &str) -> String {
    let text = url.expose_secret();
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    let own: Vec<_> =
        url.query_pairs().into_owned().filter(|(name, _)| name != "frame_max").collect();
    let has_heartbeat = own.iter().any(|(name, _)| name == "heartbeat");
    let heartbeat = (!has_heartbeat).then_some(("heartbeat", HEARTBEAT));
    let mut query = url.query_pairs_mut();
    query.clear().extend_pairs(own).extend_pairs(heartbeat).append_pair("frame_max", frame_max);
    drop(query);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::republish::RESERVED_BYTES;

    #[test]
    fn a_received_frame_fits_into_a_published_one_with_our_headers() {
        let frame_max = |role: Role| role.frame_max().parse::<usize>().unwrap();
        let received = frame_max(Role::Consumer(FrameMax::Small));
        let published = frame_max(Role::Publisher(FrameMax::Small));
        assert!(received + RESERVED_BYTES <= published);
    }

    #[test]
    fn frame_max_is_ours_and_the_heartbeat_may_be_the_urls() {
        let url = |text: &str, frame_max| with_parameters(&SecretString::from(text), frame_max);
        assert_eq!(url("amqp://h/%2f", "9"), "amqp://h/%2f?heartbeat=10&frame_max=9");
        assert_eq!(
            url("amqp://h/%2f?frame_max=8192&channel_max=7", "9"),
            "amqp://h/%2f?channel_max=7&heartbeat=10&frame_max=9"
        );
        assert_eq!(
            url("amqp://h/%2f?frame_max=8192&heartbeat=3", "9"),
            "amqp://h/%2f?heartbeat=3&frame_max=9"
        );
    }
}
