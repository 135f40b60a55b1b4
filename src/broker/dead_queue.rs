//! Lets an operator go through the dead queue: receive all, settle some, keep the rest.
//!
//! Received dead letters stay unsettled until the end, so that RabbitMQ requeues them if this
//! process dies. Each pass may count as a redelivery, and the dead queue has no dead-letter
//! exchange: at the delivery limit, 20 by default since RabbitMQ 4.0, a dead letter would be lost.
//! One that is close to the limit is therefore replaced by a copy.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::{
    options::{BasicGetOptions, BasicNackOptions},
    types::FieldTable,
};
use tokio::time::timeout;

use super::{
    acks::Acks,
    amqp::{RPC_TIMEOUT, object_name, open_channel, rpc},
    connection::{Connection, Role},
    delivery::{Delivery, SUSPECT_REDELIVERIES},
    error::{BrokerError, PublishError},
    publisher::Publisher,
    republish::{DETAIL, FAILED_AT, REASON, replay_copy, same_copy},
    topology::{Topology, queue_counts},
};
use crate::{
    config::BrokerSettings,
    message::{RequestId, decode_request, parse_date_time},
    telemetry::metrics::Metrics,
};

/// The dead queue, and the dead letters received from it.
pub(crate) struct DeadQueue {
    connection: Connection,
    acks: Arc<Acks>,
    publisher: Publisher,
    /// How many dead letters of the first count [`Self::next`] will still return.
    /// Later arrivals stay in the queue.
    pub(crate) remaining: u32,
    last_tag: Option<u64>,
}

/// A received, unsettled dead letter.
pub(crate) struct DeadLetter {
    pub(crate) delivery: Delivery,
}

impl DeadQueue {
    /// Connects and counts the dead letters.
    pub(crate) async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open(&settings.url, Role::Client).await?;
        let topology = Arc::new(Topology::new(settings));
        let remaining = queue_counts(&connection.lapin, topology.dead_queue()).await?.messages;
        let acks = Acks::new(open_channel(&connection.lapin).await?);
        // Never exposed: a command has no /metrics.
        let metrics = Metrics::new();
        let publisher = Publisher::new(Arc::clone(&connection.lapin), topology, 1, metrics);
        Ok(Self { connection, acks, publisher, remaining, last_tag: None })
    }

    /// Receives the next dead letter, or `None` after as many as there were at first.
    pub(crate) async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        let Some(remaining) = self.remaining.checked_sub(1) else { return Ok(None) };
        let queue = object_name(self.publisher.topology().dead_queue())?;
        let get = self.acks.channel.basic_get(queue, BasicGetOptions::default());
        let message = rpc("get a message from the dead queue", get).await?;
        self.remaining = if message.is_some() { remaining } else { 0 };
        Ok(message.map(|message| {
            self.last_tag = Some(message.delivery.delivery_tag);
            DeadLetter { delivery: Delivery::new(message.delivery, &self.acks) }
        }))
    }

    /// Moves a dead letter to the request queue, with its attempts reset.
    ///
    /// Acks the dead letter once RabbitMQ has confirmed its copy; otherwise it stays in its queue.
    pub(crate) async fn replay(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let request_id = letter.request_id().map(RequestId::new);
        let frame_max = self.publisher.frame_max();
        let copy = replay_copy(letter.delivery.properties(), request_id.as_ref(), frame_max);
        let queue = self.publisher.topology().request_queue();
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        self.discard(letter).await
    }

    /// Leaves a dead letter in its queue, even after an error.
    ///
    /// Fails if it was close to the delivery limit and RabbitMQ did not confirm its copy.
    pub(crate) async fn keep(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if letter.delivery.redeliveries() < SUSPECT_REDELIVERIES {
            return Ok(());
        }
        let copy = same_copy(letter.delivery.properties());
        let queue = self.publisher.topology().dead_queue();
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        letter.delivery.ack_flushed().await;
        Ok(())
    }

    /// Removes a dead letter for good, unless the connection is lost.
    pub(crate) async fn discard(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if letter.delivery.ack_flushed().await { Ok(()) } else { Err(PublishError::Disconnected) }
    }

    /// Requeues every unsettled dead letter and closes the connection.
    pub(crate) async fn close(self) {
        if let Some(tag) = self.last_tag {
            let options = BasicNackOptions { multiple: true, requeue: true };
            let requeue = self.acks.channel.basic_nack(tag, options);
            // After the timeout, RabbitMQ requeues them when the connection closes.
            let _ = timeout(RPC_TIMEOUT, requeue).await;
        }
        self.connection.close().await;
    }
}

impl DeadLetter {
    /// The request's id, from the worker's header, the body or the properties.
    pub(crate) fn request_id(&self) -> Option<String> {
        let delivery = &self.delivery;
        let decoded = || decode_request(delivery.body(), usize::MAX, Some("any")).id;
        let header = delivery.request_id_header().map(str::to_owned);
        header
            .or_else(|| decoded().map(|id| id.as_str().to_owned()))
            .or_else(|| delivery.message_id().map(str::to_owned))
    }

    /// The worker's `reason.code`, or RabbitMQ's reason if RabbitMQ dead-lettered it.
    pub(crate) fn reason(&self) -> Option<String> {
        self.text(REASON)
            .or_else(|| Some(self.death()?.inner().get("reason")?.as_long_string()?.to_string()))
    }

    /// The worker's message for people, if the worker dead-lettered it.
    pub(crate) fn detail(&self) -> Option<String> {
        self.text(DETAIL)
    }

    pub(crate) fn failed_at(&self) -> Option<SystemTime> {
        if let Some(text) = self.text(FAILED_AT) {
            return parse_date_time(&text);
        }
        let seconds = self.death()?.inner().get("time")?.as_timestamp()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = self.delivery.header(name)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// RabbitMQ's record of the latest dead-lettering.
    fn death(&self) -> Option<&FieldTable> {
        let deaths = self.delivery.headers()?.inner().get("x-death")?.as_array()?;
        deaths.as_slice().first()?.as_field_table()
    }
}
