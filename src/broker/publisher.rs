//! Publishes messages that are persistent, mandatory and confirmed.
//!
//! A message that no queue took, or may not have taken, is an error for the caller.
//!
//! Events share one channel through a [`Pipeline`]. Copies, which are rare, and events whose
//! outcome the pipeline leaves open are published one at a time per channel, on a pool of channels:
//! lapin 4.12 attaches a returned message to the channel's next confirm, whichever message that
//! confirms.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, options::ConfirmSelectOptions,
    protocol::AMQPSoftError, types::FieldTable,
};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    amqp::{long_string, short_string},
    connection::STATUS_INTERVAL,
    error::{BrokerError, PublishError, cause, soft_error},
    large::{COPYING, is_large},
    loss::CloseReason,
    pipeline::{MANDATORY, Message, Pipeline, PublishOutcome},
    topology::{Topology, queue_counts},
};
use crate::{
    message::{Event, READY, TraceContext},
    telemetry::{
        metrics::{Metrics, PublishKind},
        traces::Span,
    },
};

/// Limit of the channel pool. With 2 ms for a confirm, this many publish 4,000 copies a second, and providers
/// limit the channels of all connections together.
const MAX_CHANNELS: u16 = 8;
/// Channels of the connection that are not in the pool: for events, and for a declaration or a look.
const OTHER_CHANNELS: u16 = 2;
/// Limit of one publish, from opening a channel to the confirm.
/// Longer than two heartbeats (20 s), so that a dead connection is reported as
/// [`PublishError::Disconnected`].
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// `delivery_mode` of a message that survives a restart of RabbitMQ.
const PERSISTENT: u8 = 2;

/// The publishing channels of one connection.
#[derive(Clone)]
pub struct Publisher(Arc<PublisherInner>);

struct PublisherInner {
    connection: Arc<Connection>,
    topology: Arc<Topology>,
    events: tokio::sync::Mutex<Option<Pipeline>>,
    idle_channels: Mutex<Vec<Channel>>,
    channel_permits: Semaphore,
    close_reason: CloseReason,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// Opens no channel until one is needed. At most this many `copies` are published at once.
    pub fn new(
        connection: Arc<Connection>,
        topology: Arc<Topology>,
        copies: u16,
        metrics: Arc<Metrics>,
    ) -> Self {
        let most = match connection.configuration().channel_max() {
            0 => MAX_CHANNELS,
            channel_max => channel_max.saturating_sub(OTHER_CHANNELS).clamp(1, MAX_CHANNELS),
        };
        Self(Arc::new(PublisherInner {
            connection,
            topology,
            events: tokio::sync::Mutex::default(),
            idle_channels: Mutex::default(),
            channel_permits: Semaphore::new(copies.clamp(1, most).into()),
            close_reason: CloseReason::default(),
            metrics,
        }))
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.0.topology
    }

    pub(super) fn is_connected(&self) -> bool {
        self.0.connection.status().connected()
    }

    /// Says why RabbitMQ closed the connection, once it has.
    pub(super) fn close_reason(&self) -> CloseReason {
        self.0.close_reason.clone()
    }

    /// Counts the consumers of the request queue, this worker's included.
    pub(crate) async fn consumer_count(&self) -> Result<u32, BrokerError> {
        Ok(queue_counts(&self.0.connection, self.0.topology.request_queue()).await?.consumers)
    }

    /// The negotiated `frame_max` in bytes.
    pub(super) fn frame_max(&self) -> usize {
        let negotiated = self.0.connection.configuration().frame_max();
        usize::try_from(negotiated).unwrap_or(usize::MAX)
    }

    /// Publishes an event and waits for its confirm.
    ///
    /// # Errors
    /// RabbitMQ did not take it, or may not have.
    pub async fn publish_event(
        &self,
        event: &Event,
        correlation_id: &str,
        span: &Span<'_>,
    ) -> Result<(), PublishError> {
        let exchange = &self.0.topology.event_exchange;
        let mut span = span.event(exchange, event.kind, &event.id);
        let kind = if event.kind == READY { PublishKind::Ready } else { PublishKind::Failed };
        let started = Instant::now();
        let properties = || event_properties(event, correlation_id, span.context());
        let published = match self.publish_pipelined(exchange, event, properties()).await {
            PublishOutcome::Confirmed => Ok(()),
            PublishOutcome::Failed(error) => Err(error),
            PublishOutcome::Undecided => {
                // Boxed to keep the caller's future small; this path is rare.
                Box::pin(self.publish(exchange, event.kind, properties(), &event.body)).await
            }
        };
        self.record(kind, &published, started);
        if let Err(error) = &published {
            span.set_error(error.label());
        }
        published
    }

    /// Publishes a copy of a delivery to a queue and waits for its confirm.
    pub(super) async fn republish(
        &self,
        kind: PublishKind,
        queue: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let started = Instant::now();
        // The default exchange routes to the queue that the routing key names.
        let published = self.publish("", queue, properties, body).await;
        self.record(kind, &published, started);
        published
    }

    fn record(&self, kind: PublishKind, published: &Result<(), PublishError>, started: Instant) {
        let failure = published.as_ref().err().map(PublishError::label);
        self.0.metrics.broker.published(kind, failure, started.elapsed());
    }

    async fn publish_pipelined(
        &self,
        exchange: &str,
        event: &Event,
        properties: BasicProperties,
    ) -> PublishOutcome {
        let message = Message {
            exchange: short_string(exchange),
            routing_key: event.kind.into(),
            properties,
            body: event.body.clone(),
        };
        let publish = async {
            match self.pipeline().await {
                Some(pipeline) => pipeline.publish(message).await,
                None => PublishOutcome::Undecided,
            }
        };
        let outcome = self.with_timeout(pin!(publish)).await.unwrap_or_else(PublishOutcome::Failed);
        if let PublishOutcome::Failed(PublishError::Unconfirmed | PublishError::Refused) = outcome {
            // The next event takes a new channel: it must not wait as long, and RabbitMQ may refuse
            // everything on this one (see `attempt`).
            self.0.events.lock().await.take();
        }
        outcome
    }

    /// The open pipeline, or a new one. `None` if a channel cannot be opened.
    async fn pipeline(&self) -> Option<Pipeline> {
        let mut events = self.0.events.lock().await;
        match &*events {
            Some(pipeline) if pipeline.is_open() => Some(pipeline.clone()),
            _ => {
                let channel = self.open_channel().await.ok()?;
                Some(events.insert(Pipeline::new(channel)).clone())
            }
        }
    }

    /// Waits for a publish until it completes, times out or the connection is lost.
    async fn with_timeout<T>(
        &self,
        mut publish: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, PublishError> {
        let mut since = Instant::now();
        loop {
            let status = self.0.connection.status();
            // lapin 4.12 can lose a publish when its connection ends, and would then never complete
            // it (amqp-rs/lapin#409, open).
            match timeout(STATUS_INTERVAL, &mut publish).await {
                Ok(published) => return Ok(published),
                Err(_) if !status.connected() => return Err(PublishError::Disconnected),
                // RabbitMQ blocks the connection during a memory or disk alarm, which is no
                // failure.
                Err(_) if status.blocked() => since = Instant::now(),
                Err(_) if since.elapsed() < PUBLISH_TIMEOUT => {}
                Err(_) => return Err(PublishError::Unconfirmed),
            }
        }
    }

    /// Publishes a message and waits for its confirm.
    ///
    /// Declares the topology and tries once more if the exchange or queue does not exist.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let first = self.attempt(exchange, routing_key, properties.clone(), body).await;
        match first {
            Err(PublishError::ExchangeMissing) => {}
            // On the default exchange, unroutable means that the queue does not exist; on the event
            // exchange, that no application has bound one, which declaring does not change.
            Err(PublishError::Unroutable) if exchange.is_empty() => {}
            _ => return first,
        }
        let declared = self.0.topology.ensure(&self.0.connection).await;
        declared.map_err(|error| PublishError::ChannelClosed(error.to_string()))?;
        self.attempt(exchange, routing_key, properties, body).await
    }

    async fn attempt(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        // An error only if the semaphore is closed, which it never is.
        let _permit = self.0.channel_permits.acquire().await;
        let _copying = if is_large(body) { COPYING.acquire().await.ok() } else { None };
        let publish = async {
            let channel = self.channel().await?;
            let exchange = short_string(exchange);
            let routing_key = short_string(routing_key);
            let publish = channel.basic_publish(exchange, routing_key, MANDATORY, body, properties);
            let confirm = publish.await?.await?;
            Ok((channel, confirm))
        };
        // After an error or timeout the channel is dropped: its next confirm could be this
        // message's.
        let (channel, confirm) = match self.with_timeout(pin!(publish)).await? {
            Ok(published) => published,
            Err(error) => return Err(self.publish_error(&error)),
        };
        let published = match confirm {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                Err(PublishError::Unroutable)
            }
            // The channel is dropped here, too: after a quorum queue at its length limit has
            // refused a message, RabbitMQ may refuse all others of the channel, even once the limit
            // is removed (rabbitmq-server#12206; fixed in 3.13 and 4.0 by #12310).
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                return Err(PublishError::Refused);
            }
        };
        self.0.idle_channels.lock().push(channel);
        published
    }

    /// An idle channel that is open, or a new one.
    async fn channel(&self) -> lapin::Result<Channel> {
        loop {
            // Bound first, so that the lock is not held across the `.await` below.
            let idle = self.0.idle_channels.lock().pop();
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => return self.open_channel().await,
            }
        }
    }

    async fn open_channel(&self) -> lapin::Result<Channel> {
        let opening = async {
            let channel = self.0.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        };
        opening.await.inspect_err(|error| self.0.close_reason.note(error))
    }

    fn publish_error(&self, error: &lapin::Error) -> PublishError {
        self.0.close_reason.note(error);
        if soft_error(error) == Some(&AMQPSoftError::NOTFOUND) {
            PublishError::ExchangeMissing
        } else if self.0.connection.status().connected() {
            PublishError::ChannelClosed(cause(error))
        } else {
            PublishError::Disconnected
        }
    }
}

fn event_properties(event: &Event, correlation_id: &str, trace: &TraceContext) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), long_string(trace.parent()));
    if let Some(state) = trace.state() {
        headers.insert("tracestate".into(), long_string(state));
    }
    let seconds = event.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short_string(&event.id))
        .with_correlation_id(short_string(correlation_id))
        .with_type(event.kind.into())
        .with_timestamp(seconds)
        .with_app_id("handoff".into())
        .with_headers(headers)
}
