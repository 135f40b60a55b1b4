//! Notices when the deliveries of a session are lost.
//!
//! They are lost when the consuming channel or one of the two connections is closed. RabbitMQ then
//! redelivers them, or must: without the publishing connection, no event, copy or dead letter can be
//! confirmed.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use lapin::{Channel, Connection, Event};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    connection::STATUS_INTERVAL,
    error::{BrokerError, hard_error},
    log,
};
use crate::telemetry::log_limit::Outage;

/// How long a busy machine may take to answer a `channel.close`.
const CLOSING: Duration = Duration::from_millis(500);

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
pub(super) struct Lifeline {
    consuming: Arc<Connection>,
    publishing: Arc<Connection>,
    channel: Channel,
    publishing_closed: CloseReason,
}

/// Watches a session in a task of its own, until the session is lost or this is dropped.
///
/// There is one for each session, because lapin 4.12 gives each event to only one of several listeners (not
/// reported upstream).
pub(super) struct LossWatch {
    cause: watch::Receiver<Option<BrokerError>>,
    _task: AbortOnDropHandle<()>,
}

struct Events {
    lifeline: Lifeline,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// lapin may report an error before the state that follows from it.
    last_error: Option<lapin::Error>,
    is_blocked: bool,
}

/// What has happened to a session's connections.
enum Notice {
    Lost,
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

    /// Starts to watch. Cancels `lost` when the session is lost.
    ///
    /// If only the publishing connection is lost, waits until the consumer has `stopped`. Deliveries requeued
    /// earlier would come back to it dozens of times in a moment, and RabbitMQ counts each time.
    pub(super) fn watch(self, lost: CancellationToken, stopped: CancellationToken) -> LossWatch {
        let channel = self.channel.clone();
        let mut events = Events::of(self);
        let (sender, cause) = watch::channel(None);
        let task = tokio::spawn(async move {
            events.until_lost().await;
            let cancel = async {
                while channel.status().connected() && !stopped.is_cancelled() {
                    let _ = timeout(STATUS_INTERVAL, stopped.cancelled()).await;
                }
                lost.cancel();
            };
            // Finding out why may take a moment, and nothing may be published meanwhile.
            tokio::join!(cancel, async { sender.send_replace(Some(events.cause().await)) });
        });
        LossWatch { cause, _task: AbortOnDropHandle::new(task) }
    }

    fn is_blocked(&self) -> bool {
        self.consuming.status().blocked() || self.publishing.status().blocked()
    }

    fn is_connected(&self) -> bool {
        self.consuming.status().connected() && self.publishing.status().connected()
    }

    fn is_lost(&self) -> bool {
        !self.is_connected() || !self.channel.status().connected()
    }
}

impl LossWatch {
    /// Waits until the session is lost, and returns why.
    pub(super) fn wait(&self) -> impl Future<Output = BrokerError> + Send + 'static {
        let mut cause = self.cause.clone();
        async move {
            let lost = cause.wait_for(Option::is_some).await;
            // The task ends without a cause only when the session is dropped.
            lost.ok().and_then(|cause| cause.clone()).unwrap_or_else(connection_closed)
        }
    }
}

impl Events {
    fn of(lifeline: Lifeline) -> Self {
        let consuming = lifeline.consuming.events_listener();
        let publishing = lifeline.publishing.events_listener();
        let events = stream::select(consuming, publishing).boxed();
        Self { lifeline, events, last_error: None, is_blocked: false }
    }

    /// Logs when RabbitMQ blocks and unblocks publishing meanwhile.
    async fn until_lost(&mut self) {
        let mut outage = Outage::new(&log::PUBLISHING_BLOCKED_LIMIT);
        loop {
            match self.next().await {
                Notice::Lost => return,
                Notice::Blocked => log::publishing_blocked(&mut outage),
                Notice::Unblocked => log::publishing_unblocked(&mut outage),
            }
        }
    }

    async fn next(&mut self) -> Notice {
        loop {
            tokio::select! {
                event = self.events.next() => match event {
                    // lapin reports the error of any channel here. A publishing channel's is handled
                    // where the message was published.
                    Some(Event::Error(error)) => {
                        self.last_error = Some(error);
                        if self.lifeline.is_lost() {
                            return Notice::Lost;
                        }
                        continue;
                    }
                    Some(_) => {}
                    None => return Notice::Lost,
                },
                // Does not rely on events alone.
                () = sleep(STATUS_INTERVAL) => {
                    if self.lifeline.is_lost() {
                        return Notice::Lost;
                    }
                    self.last_error = None;
                }
            }
            let is_blocked = self.lifeline.is_blocked();
            if is_blocked != self.is_blocked {
                self.is_blocked = is_blocked;
                return if is_blocked { Notice::Blocked } else { Notice::Unblocked };
            }
        }
    }

    async fn wait_for_error(&mut self) {
        while self.last_error.is_none() {
            match self.events.next().await {
                Some(Event::Error(error)) => self.last_error = Some(error),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Why the session was lost.
    async fn cause(&mut self) -> BrokerError {
        let is_connected = self.lifeline.is_connected();
        // lapin 4.12 reports the error only once it has answered a `channel.close`.
        let limit = if is_connected { CLOSING } else { CLOSING / 5 };
        let _ = timeout(limit, self.wait_for_error()).await;
        match self.last_error.take() {
            Some(error) if is_connected => {
                BrokerError::connection_lost("the consumer failed", &error)
            }
            Some(error) => BrokerError::connection_lost("connection lost", &error),
            None if is_connected => BrokerError::new("the consuming channel was closed"),
            None => {
                let reason = self.lifeline.publishing_closed.0.get().cloned();
                reason.unwrap_or_else(connection_closed)
            }
        }
    }
}

fn connection_closed() -> BrokerError {
    BrokerError::new("connection closed")
}
