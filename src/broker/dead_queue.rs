//! The dead queue, as an operator looks through it: take all, settle some, leave the rest as it was.
//!
//! A dead letter that is looked at is held, unsettled, until the end; whatever happens to the process,
//! RabbitMQ then has it again. A newer RabbitMQ counts how often, and drops what has come back too
//! often from a queue with nowhere to pass it on to: so one that is about to is put back as a copy.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::{
    options::{BasicGetOptions, BasicNackOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::timeout;

use super::{
    BrokerError, Connection, Delivery, PublishError, Publisher, Role, Topology,
    acks::Acks,
    delivery::SUSPECT_REDELIVERIES,
    republish::{DETAIL, FAILED_AT, REASON, replay_copy, same_copy},
    rpc::{RPC_TIMEOUT, open_channel, rpc},
    topology::short,
};
use crate::{config::BrokerSettings, message::decode_request, telemetry::metrics::Metrics};

/// The dead queue, and what of it is held.
pub struct DeadQueue {
    connection: Connection,
    acks: Arc<Acks>,
    publisher: Publisher,
    /// How many were there at first, less those that were taken. What comes meanwhile is left alone.
    left: u32,
    last: Option<u64>,
}

/// A dead letter that is held.
pub struct DeadLetter {
    delivery: Delivery,
}

impl DeadQueue {
    /// Connects, and looks how many there are.
    ///
    /// # Errors
    /// The first thing that does not work.
    pub async fn open(config: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open(&config.url, Role::Client).await?;
        let topology = Arc::new(Topology::new(config));
        let left = topology.dead_letters(connection.lapin()).await?;
        let acks = Acks::new(open_channel(connection.lapin()).await?);
        // Nobody scrapes a command.
        let metrics = Metrics::new();
        let publisher = Publisher::new(Arc::clone(connection.lapin()), topology, 1, metrics);
        Ok(Self { connection, acks, publisher, left, last: None })
    }

    /// How many are still to come.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// The next one. `None` where there are no more than were there at first.
    ///
    /// # Errors
    /// The connection is lost, or the queue is gone.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, BrokerError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        let queue = short(self.publisher.topology().dead_queue())?;
        let get = self.acks.channel().basic_get(queue, BasicGetOptions::default());
        let got = rpc("take a message from the dead queue", get).await?;
        self.left = if got.is_some() { left } else { 0 };
        Ok(got.map(|message| {
            self.last = Some(message.delivery.delivery_tag);
            DeadLetter { delivery: Delivery::new(message.delivery, &self.acks) }
        }))
    }

    /// Sends a dead letter to the request queue again, as if it had never been tried. It leaves the dead
    /// queue only once RabbitMQ has confirmed the copy.
    ///
    /// # Errors
    /// It could not be sent, or may not have been. It is still dead then.
    pub async fn replay(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        let copy = replay_copy(letter.delivery.properties(), self.publisher.frame_max());
        let queue = self.publisher.topology().request_queue();
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        self.discard(letter).await
    }

    /// Leaves a dead letter where it was.
    ///
    /// # Errors
    /// It had come back so often that it was put back as a copy, and that failed. It is still there.
    pub async fn keep(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        if letter.delivery.redeliveries() < SUSPECT_REDELIVERIES {
            return Ok(());
        }
        let copy = same_copy(letter.delivery.properties());
        let queue = self.publisher.topology().dead_queue();
        self.publisher.publish("", queue, copy, letter.delivery.body()).await?;
        letter.delivery.ack_written().await;
        Ok(())
    }

    /// Drops a dead letter for good.
    ///
    /// # Errors
    /// The connection is lost, and the dead letter is still there.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<(), PublishError> {
        match letter.delivery.ack_written().await {
            true => Ok(()),
            false => Err(PublishError::Disconnected),
        }
    }

    /// Puts back what is held, and closes.
    pub async fn close(self) {
        let back = async {
            if let Some(last) = self.last {
                let all = BasicNackOptions { multiple: true, requeue: true };
                let _ = self.acks.channel().basic_nack(last, all).await;
            }
        };
        // Past the limit, the end of the connection does the same.
        let _ = timeout(RPC_TIMEOUT, back).await;
        self.connection.close().await;
    }
}

impl DeadLetter {
    /// The request's id: as the worker noted it, as the body says, or the message's own.
    pub fn request_id(&self) -> Option<String> {
        let delivery = &self.delivery;
        let noted = delivery.request_id_header().map(str::to_owned);
        noted
            .or_else(|| {
                let decoded = decode_request(delivery.body(), usize::MAX, Some("any"));
                decoded.id.map(|id| id.as_str().to_owned())
            })
            .or_else(|| delivery.message_id().map(str::to_owned))
    }

    /// Cause it is dead: a `reason.code`, or what RabbitMQ says that moved it here.
    pub fn reason(&self) -> Option<String> {
        self.text(REASON).or_else(|| match self.death()?.inner().get("reason")? {
            AMQPValue::LongString(reason) => Some(reason.to_string()),
            _ => None,
        })
    }

    /// The same for people, where the worker said it.
    pub fn detail(&self) -> Option<String> {
        self.text(DETAIL)
    }

    /// Attempts that were made.
    pub fn attempts(&self) -> u32 {
        self.delivery.previous_attempts()
    }

    /// When it came here.
    pub fn failed_at(&self) -> Option<SystemTime> {
        if let Some(text) = self.text(FAILED_AT) {
            return crate::message::parse_date_time(&text);
        }
        match self.death()?.inner().get("time")? {
            AMQPValue::Timestamp(seconds) => {
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
            }
            _ => None,
        }
    }

    /// The same without the bytes of its body, for holding many.
    #[must_use]
    pub fn without_body(self) -> Self {
        Self { delivery: self.delivery.without_body() }
    }

    /// The message behind it.
    pub fn message(&self) -> &Delivery {
        &self.delivery
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = self.delivery.header(name)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// RabbitMQ's note on the last move.
    fn death(&self) -> Option<&FieldTable> {
        match self.delivery.headers()?.inner().get("x-death")? {
            AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
                AMQPValue::FieldTable(death) => Some(death),
                _ => None,
            },
            _ => None,
        }
    }
}
