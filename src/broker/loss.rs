//! Notices when the deliveries of a session are lost.
//!
//! They are lost when the consuming channel or one of the two connections is closed. RabbitMQ then
//! redelivers them, or must: without the publishing connection, no event, copy or dead letter can be
//! confirmed.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
};

use futures_util::{Stream, StreamExt, stream};
use lapin::{Channel, Connection, Event};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connection::STATUS_INTERVAL,
    error::{BrokerError, hard_error},
};

/// Why RabbitMQ closed a connection.
///
/// lapin 4.12 reports it only to calls that wait for an answer at that moment, and not as an event (not
/// reported upstream).
#[derive(Clone, Debug, Default)]
pub(super) struct CloseReason(Arc<OnceLock<BrokerError>>);

impl CloseReason {
    /// Keeps the error of a call, if it says why the connection was closed.
    pub(super) fn note(&self, error: &lapin::Error) {
        if hard_error(error).is_some() {
            let _ = self.0.set(BrokerError::connection_lost("connection lost", error));
        }
    }
}

/// What a session's deliveries depend on.
#[derive(Clone)]
pub(super) struct Lifeline {
    consuming: Arc<Connection>,
    publishing: Arc<Connection>,
    channel: Channel,
    publishing_closed: CloseReason,
}

/// Waits until a session is lost, or for RabbitMQ to block or unblock publishing.
pub(super) struct LossWatch {
    lifeline: Lifeline,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// lapin may report an error before the state that follows from it.
    last_error: Option<lapin::Error>,
}

/// What a [`LossWatch`] has noticed.
pub(super) enum Notice {
    Lost(BrokerError),
    Blocked,
    Unblocked,
}

impl Lifeline {
    pub(super) fn new(
        consuming: Arc<Connection>,
        publishing: Arc<Connection>,
        channel: Channel,
        publishing_closed: CloseReason,
    ) -> Self {
        Self { consuming, publishing, channel, publishing_closed }
    }

    pub(super) fn watch(&self) -> LossWatch {
        let consuming = self.consuming.events_listener();
        let publishing = self.publishing.events_listener();
        LossWatch {
            lifeline: self.clone(),
            events: stream::select(consuming, publishing).boxed(),
            last_error: None,
        }
    }

    /// Cancels `lost` when the session is lost.
    ///
    /// If only the publishing connection is lost, waits until the consumer has `stopped`. Deliveries requeued
    /// earlier would come back to it dozens of times in a moment, and RabbitMQ counts each time.
    pub(super) fn cancel_when_lost(
        &self,
        lost: CancellationToken,
        stopped: CancellationToken,
    ) -> AbortOnDropHandle<()> {
        let mut watch = self.watch();
        AbortOnDropHandle::new(tokio::spawn(async move {
            while !matches!(watch.next().await, Notice::Lost(_)) {}
            let channel = &watch.lifeline.channel;
            while channel.status().connected() && !stopped.is_cancelled() {
                let _ = timeout(STATUS_INTERVAL, stopped.cancelled()).await;
            }
            lost.cancel();
        }))
    }

    fn is_connected(&self) -> bool {
        self.consuming.status().connected() && self.publishing.status().connected()
    }

    fn is_lost(&self) -> bool {
        !self.is_connected() || !self.channel.status().connected()
    }
}

impl LossWatch {
    pub(super) async fn next(&mut self) -> Notice {
        loop {
            let event = tokio::select! {
                event = self.events.next() => event,
                // Does not rely on events alone.
                () = sleep(STATUS_INTERVAL) => {
                    if self.lifeline.is_lost() {
                        return Notice::Lost(self.cause());
                    }
                    self.last_error = None;
                    continue;
                }
            };
            match event {
                // lapin reports the error of any channel here. A publishing channel's is handled
                // where the message was published.
                Some(Event::Error(error)) => {
                    self.last_error = Some(error);
                    if self.lifeline.is_lost() {
                        return Notice::Lost(self.cause());
                    }
                }
                Some(Event::ConnectionBlocked(_)) => return Notice::Blocked,
                Some(Event::ConnectionUnblocked) => return Notice::Unblocked,
                Some(_) => {}
                None => return Notice::Lost(self.cause()),
            }
        }
    }

    fn cause(&mut self) -> BrokerError {
        let is_connected = self.lifeline.is_connected();
        match self.last_error.take() {
            Some(error) if is_connected => {
                BrokerError::connection_lost("the consumer failed", &error)
            }
            Some(error) => BrokerError::connection_lost("connection lost", &error),
            None if is_connected => BrokerError::new("the consuming channel was closed"),
            None => {
                let reason = self.lifeline.publishing_closed.0.get().cloned();
                reason.unwrap_or_else(|| BrokerError::new("connection closed"))
            }
        }
    }
}
