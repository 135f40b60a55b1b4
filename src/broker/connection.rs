//! Two connections: one to consume, one to publish. They live and die together.
//!
//! RabbitMQ blocks a connection that publishes while it is short of memory or disk, and then nothing
//! at all goes through it, acks included: hence two. Recovery is ours rather than the library's, which
//! can hang for ever on a half-open connection: whatever breaks, both are given up and all is built
//! anew.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use lapin::{ConnectionProperties, Event, types::LongString, uri::AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use url::Url;

use super::{
    BrokerError, Consumer, Publisher, Topology,
    socket::{self, Socket},
    upkeep,
};
use crate::{
    config::BrokerSettings,
    telemetry::{
        log_limit::{LogLimit, Outage},
        metrics::Metrics,
    },
};

static BLOCKED: LogLimit = LogLimit::new("RabbitMQ blocks publishing", 3);

/// Limit of the whole handshake: name resolution, TCP, TLS, AMQP. RabbitMQ has the same. A peer that
/// says nothing at all is given up much sooner.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Limit of closing in good order; past it the connection is dropped.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Seconds without a sign of life after which RabbitMQ is asked for one; twice that ends it.
const HEARTBEAT: &str = "10";

/// How often it is looked at whether a connection still stands.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The largest frames that a worker's connections take. The library keeps room for 64 of them: with
/// those that RabbitMQ would take, 8 MiB for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Small ones, into which what almost all messages say of themselves goes. Bodies may take several.
    /// The publisher's are larger: what has come in one goes out in one, with what is added to it.
    Small,
    /// As large as RabbitMQ makes them.
    Large,
}

/// What a connection is for, as RabbitMQ's management page shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes deliveries.
    Consumer(Frames),
    /// Publishes events, retry copies and dead letters.
    Publisher(Frames),
    /// A command: it publishes requests and waits for their events, or looks around.
    Client,
}

impl Role {
    /// The largest frame, in bytes; `None`: as RabbitMQ says.
    fn frame_max(self) -> Option<&'static str> {
        match self {
            Self::Consumer(Frames::Small) => Some("8192"),
            Self::Publisher(Frames::Small) => Some("20480"),
            Self::Consumer(Frames::Large) | Self::Publisher(Frames::Large) | Self::Client => None,
        }
    }
}

/// A connection to RabbitMQ. However it ends, nothing of it stays behind: dropped, it is closed in good
/// order or at least quickly.
pub struct Connection {
    inner: Arc<lapin::Connection>,
    socket: Option<Socket>,
}

/// Connects to RabbitMQ.
///
/// # Errors
/// When there is no connection within ten seconds. The message says why and holds no password.
pub async fn connect(url: &SecretString, role: Role) -> Result<Connection, BrokerError> {
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
            Ok(Connection { inner: Arc::new(connection), socket: Some(socket) })
        }
        Ok(Err(error)) => Err(BrokerError::during(doing, &error)),
        Err(_) => Err(BrokerError::timeout(doing)),
    }
}

impl Connection {
    /// The library's side of it.
    pub(crate) fn get(&self) -> &Arc<lapin::Connection> {
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

/// Both connections, with the consumer and the publisher on them.
pub struct BrokerSession {
    consuming: Connection,
    publishing: Connection,
    topology: Arc<Topology>,
    /// Where deliveries come from.
    pub consumer: Consumer,
    /// Where events, retry copies and dead letters go.
    pub publisher: Publisher,
}

impl BrokerSession {
    /// Connects twice, declares or checks the topology, and starts to consume.
    ///
    /// # Errors
    /// The first thing that does not work. Nothing of it is left behind.
    pub async fn attach(
        config: &BrokerSettings,
        concurrency: u16,
        frames: Frames,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BrokerError> {
        // One after the other: where there is no answer, one attempt is enough to find out.
        let publishing = connect(&config.url, Role::Publisher(frames)).await?;
        let consuming = connect(&config.url, Role::Consumer(frames)).await?;
        let topology = Arc::new(Topology::new(config));
        topology.ensure(publishing.get()).await?;
        let consumer = Consumer::start(consuming.get(), &config.queue).await?;
        let publisher = Publisher::new(
            Arc::clone(publishing.get()),
            Arc::clone(&topology),
            concurrency,
            metrics,
        );
        Ok(Self { consuming, publishing, topology, consumer, publisher })
    }

    /// Waits until one of the connections breaks, and says how. Looks after the topology meanwhile.
    pub fn fault(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let connections = [&self.consuming, &self.publishing].map(|one| Arc::clone(one.get()));
        let [consuming, publishing] =
            connections.each_ref().map(|one| one.events_listener().boxed());
        let mut events = stream::select(consuming, publishing);
        // On the connection that is never blocked.
        let upkeep =
            upkeep::look_after(Arc::clone(&self.topology), Arc::clone(self.consuming.get()));
        async move {
            let mut upkeep = std::pin::pin!(upkeep);
            let mut blocked = Outage::new(&BLOCKED);
            let connected = || connections.iter().all(|connection| connection.status().connected());
            loop {
                tokio::select! {
                    event = events.next() => match event {
                        // One channel's trouble comes along here, too, and is told elsewhere.
                        Some(Event::Error(error)) => if !connected() {
                            return BrokerError::broke("the connection broke", &error);
                        },
                        Some(Event::ConnectionBlocked(_)) => if blocked.report_down() {
                            tracing::warn!("RabbitMQ blocks publishing: it is short of memory or disk");
                        }
                        Some(Event::ConnectionUnblocked) => if blocked.report_up() {
                            tracing::info!("RabbitMQ takes messages again");
                        },
                        Some(_) => {}
                        None => return BrokerError::new("the connection is gone"),
                    },
                    // Should an event ever be missed, this is noticed all the same.
                    () = sleep(LOOK_EVERY) => if !connected() {
                        return BrokerError::new("the connection is closed");
                    },
                    forgotten = &mut upkeep => return forgotten,
                }
            }
        }
    }

    /// Counts those who consume from the request queue.
    pub fn headcount(&self) -> ConsumerCount {
        ConsumerCount(self.publisher.clone())
    }

    /// Waits until what was delivered cannot be answered any more.
    pub async fn until_broken(&mut self) {
        while self.is_whole() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether what was delivered can still be answered. If not, RabbitMQ delivers it again.
    pub fn is_whole(&self) -> bool {
        self.consumer.is_open() && self.publishing.inner.status().connected()
    }

    /// Takes no more deliveries and hands back what was fetched ahead. What is in flight can still be
    /// settled.
    pub async fn stop_consuming(&mut self) {
        self.consumer.stop().await;
    }

    /// Closes both connections in good order, or at least quickly.
    pub async fn close(self) {
        // First, and by itself: what ends a connection overtakes acknowledgements within RabbitMQ.
        let _ = timeout(CLOSE_LIMIT, self.consumer.close()).await;
        tokio::join!(self.consuming.close(), self.publishing.close());
    }
}

/// Counts those who consume from the request queue, for as long as the connection stands.
pub struct ConsumerCount(Publisher);

impl ConsumerCount {
    /// How many there are now.
    ///
    /// # Errors
    /// The connection is lost, or the queue is gone.
    pub async fn take(&self) -> Result<u32, BrokerError> {
        self.0.traffic().await.map(|traffic| traffic.consumers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::republish::RESERVE;

    #[test]
    fn what_comes_in_goes_out_with_what_is_added() {
        let most = |role: Role| role.frame_max().unwrap().parse::<usize>().unwrap();
        let (comes, goes) =
            (most(Role::Consumer(Frames::Small)), most(Role::Publisher(Frames::Small)));
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
