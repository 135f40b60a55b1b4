//! Publishing that is sure: persistent, mandatory, confirmed, and nothing unroutable goes unseen.
//!
//! Events share one channel, where `pipeline` keeps their fates apart. Copies, which are rare, and
//! events whose fate that leaves open, go one at a time through channels of their own: the library ties
//! a returned message to whichever confirm comes next on its channel.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::ConfirmSelectOptions,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    BrokerError, QueueCounts, Topology,
    connection::LOOK_EVERY,
    error::{PublishError, Refusal, cause, refusal},
    pipeline::{MANDATORY, Message, Pipeline},
};
use crate::{
    message::{Event, READY, TraceContext},
    telemetry::{
        metrics::{Metrics, PublishKind},
        traces::Span,
    },
};

/// Channels that publish at once. More gain nothing: RabbitMQ confirms in batches.
const MAX_CHANNELS: u16 = 64;
/// Limit of one publish, from opening a channel to the confirm. Above two heartbeats, so that a dead
/// connection is told as one.
const PUBLISH_LIMIT: Duration = Duration::from_secs(30);
const PERSISTENT: u8 = 2;

/// One connection's confirm channels: that of the events, and a pool for all else.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    connection: Arc<Connection>,
    topology: Arc<Topology>,
    events: tokio::sync::Mutex<Option<Pipeline>>,
    idle: Mutex<Vec<Channel>>,
    turns: Semaphore,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// No channel is opened before it is needed.
    pub fn new(
        connection: Arc<Connection>,
        topology: Arc<Topology>,
        concurrency: u16,
        metrics: Arc<Metrics>,
    ) -> Self {
        let turns = Semaphore::new(concurrency.clamp(1, MAX_CHANNELS).into());
        let (events, idle) = (tokio::sync::Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { connection, topology, events, idle, turns, metrics }))
    }

    /// The names it publishes to.
    pub fn topology(&self) -> &Topology {
        &self.0.topology
    }

    /// What goes on at the request queue.
    pub(super) async fn request_queue_counts(&self) -> Result<QueueCounts, BrokerError> {
        self.0.topology.request_queue_counts(&self.0.connection).await
    }

    /// Largest frame that RabbitMQ takes on this connection, in bytes.
    pub(super) fn frame_max(&self) -> usize {
        let agreed = self.0.connection.configuration().frame_max();
        usize::try_from(agreed).unwrap_or(usize::MAX)
    }

    /// Publishes an event.
    ///
    /// # Errors
    /// RabbitMQ did not take it, or may not have.
    pub async fn publish_event(
        &self,
        event: &Event,
        correlation_id: &str,
        span: &Span<'_>,
    ) -> Result<(), PublishError> {
        let exchange = self.0.topology.event_exchange();
        let mut span = span.event(exchange, event.kind, &event.id);
        let kind = if event.kind == READY { PublishKind::Ready } else { PublishKind::Failed };
        let began = Instant::now();
        let properties = || properties(event, correlation_id, span.context());
        let published = match self.pipelined(exchange, event, properties()).await {
            Ok(Some(told)) => told,
            Ok(None) => {
                // Rare: all others need not have room for it.
                Box::pin(self.publish(exchange, event.kind, properties(), &event.body)).await
            }
            Err(error) => Err(error),
        };
        self.count(kind, &published, began);
        if let Err(error) = &published {
            span.set_error(error.label());
        }
        published
    }

    /// Publishes a copy of a request into a queue.
    ///
    /// # Errors
    /// RabbitMQ did not take it, or may not have.
    pub(super) async fn republish(
        &self,
        kind: PublishKind,
        queue: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let began = Instant::now();
        // The default exchange leads to the queue of the routing key's name.
        let published = self.publish("", queue, properties, body).await;
        self.count(kind, &published, began);
        published
    }

    fn count(&self, kind: PublishKind, published: &Result<(), PublishError>, began: Instant) {
        let fault = published.as_ref().err().map(PublishError::label);
        self.0.metrics.published(kind, fault, began.elapsed());
    }

    /// Publishes an event together with others. `None`: what became of it is not sure, or the channel
    /// broke, be it over another.
    async fn pipelined(
        &self,
        exchange: &str,
        event: &Event,
        properties: BasicProperties,
    ) -> Result<Option<Result<(), PublishError>>, PublishError> {
        let message = Message {
            exchange: short_string(exchange),
            routing_key: event.kind.into(),
            properties,
            body: event.body.clone(),
        };
        let publish = async {
            let pipeline = self.pipeline().await?;
            pipeline.publish(message).await
        };
        let fate = self.watched(std::pin::pin!(publish)).await;
        if matches!(fate, Err(PublishError::Unconfirmed) | Ok(Some(Err(PublishError::Refused)))) {
            // Whoever comes next shall not wait as long, or be refused for the channel's sake.
            self.0.events.lock().await.take();
        }
        fate
    }

    /// The events' channel, opened where there is none.
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

    /// Waits for a publish, for as long as there is a point in it.
    async fn watched<T>(
        &self,
        mut publish: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, PublishError> {
        let mut since = Instant::now();
        loop {
            let status = self.0.connection.status();
            // The library can lose a publish that meets the end of its connection, and would let it wait
            // for ever.
            match timeout(LOOK_EVERY, &mut publish).await {
                Ok(done) => return Ok(done),
                Err(_) if !status.connected() => return Err(PublishError::Disconnected),
                // It takes nothing at the moment, from anybody, and says so: that is no failure.
                Err(_) if status.blocked() => since = Instant::now(),
                Err(_) if since.elapsed() < PUBLISH_LIMIT => {}
                Err(_) => return Err(PublishError::Unconfirmed),
            }
        }
    }

    /// Publishes a message and waits until RabbitMQ has it. An exchange or queue that was deleted
    /// meanwhile is declared again, once.
    ///
    /// # Errors
    /// RabbitMQ did not take it, or may not have.
    pub async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), PublishError> {
        let first = self.attempt(exchange, routing_key, properties.clone(), body).await;
        // Through the default exchange a message is unroutable when its queue is gone. That nobody
        // listens for events, on the other hand, is not ours to mend.
        let deleted = match &first {
            Err(PublishError::ExchangeMissing) => true,
            Err(PublishError::Unroutable) => exchange.is_empty(),
            _ => false,
        };
        if !deleted {
            return first;
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
        // Never closed, so a turn always comes.
        let _turn = self.0.turns.acquire().await;
        let attempt = async {
            let channel = self.channel().await?;
            let (exchange, routing_key) = (short_string(exchange), short_string(routing_key));
            let publish = channel.basic_publish(exchange, routing_key, MANDATORY, body, properties);
            let confirm = publish.await?.await?;
            Ok((channel, confirm))
        };
        // A channel whose publish failed or timed out is dropped: its next confirm would be the old one.
        let (channel, confirm) = match self.watched(std::pin::pin!(attempt)).await? {
            Ok(done) => done,
            Err(error) => return Err(self.failed(&error)),
        };
        let fate = match confirm {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                Err(PublishError::Unroutable)
            }
            // A channel that a full quorum queue has refused once may be refused for good, even when
            // the queue's limit is gone.
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                return Err(PublishError::Refused);
            }
        };
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
        fate
    }

    /// An idle channel, or a new one.
    async fn channel(&self) -> lapin::Result<Channel> {
        loop {
            let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        self.open_channel().await
    }

    async fn open_channel(&self) -> lapin::Result<Channel> {
        let channel = self.0.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn failed(&self, error: &lapin::Error) -> PublishError {
        if refusal(error) == Some(Refusal::NotFound) {
            return PublishError::ExchangeMissing;
        }
        if self.0.connection.status().connected() {
            PublishError::ChannelClosed(cause(error))
        } else {
            PublishError::Disconnected
        }
    }
}

/// What an event's message says of itself.
fn properties(event: &Event, correlation_id: &str, trace: &TraceContext) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(trace.parent().into()));
    if let Some(state) = trace.state() {
        headers.insert("tracestate".into(), AMQPValue::LongString(state.into()));
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

/// Text as AMQP carries it in properties: its first 255 bytes, or a few less.
pub fn short_string(text: &str) -> ShortString {
    ShortString::try_new(&text[..text.floor_char_boundary(255)]).unwrap_or_default()
}
