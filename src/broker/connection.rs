//! Two connections: one to consume, one to publish. They live and die together.
//!
//! RabbitMQ blocks a connection that publishes while it is short of memory or disk, and then nothing
//! at all goes through it, acks included: hence two. Recovery is ours rather than the library's, which
//! can hang for ever on a half-open connection: whatever breaks, both are given up and all is built
//! anew.

use std::{sync::Arc, time::Duration};

use lapin::{ConnectionProperties, types::LongString, uri::AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use tokio::{runtime::Handle, time::timeout};
use url::Url;

use super::{
    error::BrokerError,
    socket::{self, Socket},
};

/// Limit of the whole handshake: name resolution, TCP, TLS, AMQP. RabbitMQ has the same. A peer that
/// says nothing at all is given up much sooner.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Limit of closing in good order; past it the connection is dropped.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Seconds without a sign of life after which RabbitMQ is asked for one; twice that ends it.
const HEARTBEAT: &str = "10";

/// How often it is looked at whether a connection still stands.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The largest frames that a worker's connections take. The library keeps room for 64 of them: with
/// those that RabbitMQ would take, 8 MiB for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameMax {
    /// Small ones, into which what almost all messages say of themselves goes. Bodies may take several.
    /// The publisher's are larger: what has come in one goes out in one, with what is added to it.
    Small,
    /// As large as RabbitMQ makes them.
    Server,
}

/// What a connection is for, as RabbitMQ's management page shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes deliveries.
    Consumer(FrameMax),
    /// Publishes events, retry copies and dead letters.
    Publisher(FrameMax),
    /// A command: it publishes requests and waits for their events, or looks around.
    Client,
}

impl Role {
    /// The largest frame, in bytes; `None`: as RabbitMQ says.
    fn frame_max(self) -> Option<&'static str> {
        match self {
            Self::Consumer(FrameMax::Small) => Some("8192"),
            Self::Publisher(FrameMax::Small) => Some("20480"),
            Self::Consumer(FrameMax::Server) | Self::Publisher(FrameMax::Server) | Self::Client => {
                None
            }
        }
    }
}

/// A connection to RabbitMQ. However it ends, nothing of it stays behind: dropped, it is closed in good
/// order or at least quickly.
pub struct Connection {
    inner: Arc<lapin::Connection>,
    socket: Option<Socket>,
}

impl Connection {
    /// Connects to RabbitMQ.
    ///
    /// # Errors
    /// When there is no connection within ten seconds. The message says why and holds no password.
    pub async fn open(url: &SecretString, role: Role) -> Result<Self, BrokerError> {
        let name = match role {
            Role::Consumer(_) => "handoff consumer",
            Role::Publisher(_) => "handoff publisher",
            Role::Client => "handoff client",
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(name))
            .with_client_property("product".into(), LongString::from("handoff"))
            .with_client_property("version".into(), LongString::from(env!("CARGO_PKG_VERSION")));
        let doing = "connect to RabbitMQ";
        let Ok(uri) = tuned(url, role.frame_max()).parse::<AMQPUri>() else {
            return Err(BrokerError::new("the URL of RabbitMQ is none"));
        };
        match timeout(CONNECT_LIMIT, socket::open(uri, properties)).await {
            Ok(Ok((connection, socket))) => {
                Ok(Self { inner: Arc::new(connection), socket: Some(socket) })
            }
            Ok(Err(error)) => Err(BrokerError::during(doing, &error)),
            Err(_) => Err(BrokerError::timeout(doing)),
        }
    }

    /// The library's side of it.
    pub(crate) fn lapin(&self) -> &Arc<lapin::Connection> {
        &self.inner
    }

    /// Closes it in good order, or at least quickly.
    pub async fn close(mut self) {
        end(Arc::clone(&self.inner), self.socket.take()).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let (Some(socket), Ok(runtime)) = (self.socket.take(), Handle::try_current()) {
            runtime.spawn(end(Arc::clone(&self.inner), Some(socket)));
        }
    }
}

/// A connection that is broken already cannot be closed; either way its socket ends here.
async fn end(connection: Arc<lapin::Connection>, socket: Option<Socket>) {
    let _ = timeout(CLOSE_LIMIT, connection.close(200, "done".into())).await;
    drop(socket);
}

/// The URL with our heartbeat, unless it sets its own, and with frames of this size. What it says of
/// those does not count: with frames that stay small, a request with large headers would break every
/// connection until it is dead, and copies would lose theirs.
fn tuned(url: &SecretString, frame_max: Option<&str>) -> String {
    let text = url.expose_secret();
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    let own: Vec<_> =
        url.query_pairs().into_owned().filter(|(name, _)| name != "frame_max").collect();
    let no_heartbeat = !own.iter().any(|(name, _)| name == "heartbeat");
    let heartbeat = no_heartbeat.then_some(("heartbeat", HEARTBEAT));
    let frame_max = frame_max.map(|frames| ("frame_max", frames));
    url.query_pairs_mut().clear().extend_pairs(own).extend_pairs(heartbeat).extend_pairs(frame_max);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::republish::RESERVE;

    #[test]
    fn what_comes_in_goes_out_with_what_is_added() {
        let most = |role: Role| role.frame_max().unwrap().parse::<usize>().unwrap();
        let (comes, goes) =
            (most(Role::Consumer(FrameMax::Small)), most(Role::Publisher(FrameMax::Small)));
        assert!(comes + RESERVE <= goes);
    }

    #[test]
    fn frames_are_ours_and_so_is_the_heartbeat_unless_the_url_sets_its_own() {
        let url = |text: &str, frames| tuned(&SecretString::from(text), frames);
        assert_eq!(url("amqp://h/%2f", None), "amqp://h/%2f?heartbeat=10");
        assert_eq!(url("amqp://h/%2f", Some("9")), "amqp://h/%2f?heartbeat=10&frame_max=9");
        assert_eq!(
            url("amqp://h/%2f?frame_max=8192&channel_max=7", Some("9")),
            "amqp://h/%2f?channel_max=7&heartbeat=10&frame_max=9"
        );
        assert_eq!(
            url("amqp://h/%2f?frame_max=8192&heartbeat=3", None),
            "amqp://h/%2f?heartbeat=3"
        );
    }
}
