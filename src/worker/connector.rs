//! Connects to RabbitMQ, and replaces a connection whose settings have changed.

use std::{pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{
    connected::Connected,
    log,
    logins::{Logins, NextLogin},
    process::Processor,
};
use crate::{
    broker::{BrokerError, BrokerSession, FrameMax, NodeCursor, Topology},
    config::{AmqpNodes, BrokerSettings},
    health::Health,
    retry::Backoff,
};

/// Makes one connection after another. Remembers which node and which credentials worked.
#[derive(Clone)]
pub(super) struct Connector {
    settings: Arc<BrokerSettings>,
    topology: Arc<Topology>,
    /// How many copies may be published at once.
    pub(super) copies: u16,
    processor: Arc<Processor>,
    health: Arc<Health>,
    pub(super) cursor: NodeCursor,
    pub(super) frame_max: FrameMax,
    /// Shared with the connector of a replacement: a lost connection must not start over with the delays.
    logins: Arc<Mutex<Logins>>,
}

/// A connection with changed settings, and the connector that made it.
pub(super) struct Replacement {
    pub(super) connected: Connected,
    pub(super) connector: Connector,
}

impl Connector {
    pub(super) fn new(
        settings: BrokerSettings,
        concurrency: u16,
        processor: Arc<Processor>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            topology: Arc::new(Topology::new(&settings)),
            settings: Arc::new(settings),
            copies: concurrency,
            processor,
            health,
            cursor: NodeCursor::new(),
            frame_max: FrameMax::Small,
            logins: Arc::new(Mutex::new(Logins::new())),
        }
    }

    /// Retries until connected. Calls `failed` with each error that is worth a log line.
    pub(super) async fn connect(&mut self, mut failed: impl FnMut(BrokerError)) -> Connected {
        let mut backoff = reconnect_backoff();
        loop {
            match self.try_connect(true).await {
                Ok(connected) => return connected,
                Err(Failure { nodes, error }) => {
                    self.health.set_consuming(false);
                    self.failed(&nodes, error, &mut backoff, &mut failed).await;
                }
            }
        }
    }

    /// Waits until the settings are others than those of a connection, and makes one with the new settings.
    /// The former connection serves meanwhile, however long that takes.
    pub(super) async fn replace(mut self, former: AmqpNodes) -> Replacement {
        let settings = Arc::clone(&self.settings);
        settings.nodes.changed_from(&former).await;
        // No request waits. RabbitMQ may have a limit on connections that leaves no room for a second pair.
        let mut backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            match self.try_connect(false).await {
                Ok(connected) => return Replacement { connected, connector: self },
                Err(Failure { nodes, error }) => {
                    self.failed(&nodes, error, &mut backoff, &mut log::not_replaced).await;
                }
            }
        }
    }

    /// Waits for the time of the next login, and connects to a node. `or_former`: with the former settings if
    /// the login with the current ones was refused.
    async fn try_connect(&mut self, or_former: bool) -> Result<Connected, Failure> {
        let source = &self.settings.nodes;
        let nodes = loop {
            // A rotated password, for example.
            source.look().await;
            let current = source.current();
            let next = self.logins.lock().next(&current, or_former);
            match next {
                NextLogin::Now(nodes) => break nodes,
                NextLogin::At(at) => {
                    if or_former {
                        self.health.set_consuming(false);
                    }
                    tokio::select! {
                        () = sleep_until(at) => {}
                        () = source.changed_from(&current) => {}
                    }
                }
            }
        };
        let session = BrokerSession::open(
            Arc::clone(&self.topology),
            &nodes,
            &self.cursor,
            self.copies,
            self.frame_max,
            Arc::clone(&self.processor.metrics),
        );
        match session.await {
            Ok(session) => {
                self.cursor.served();
                let are_current = nodes.is_same(&source.current());
                self.logins.lock().accepted(&nodes, are_current);
                if are_current {
                    self.health.set_login_error(None);
                }
                Ok(Connected::new(session, nodes, &self.processor))
            }
            Err(error) => Err(Failure { nodes, error }),
        }
    }

    /// Records a failed try, and waits unless it was a login, whose time [`Logins`] knows.
    async fn failed(
        &mut self,
        nodes: &AmqpNodes,
        error: BrokerError,
        backoff: &mut Backoff,
        log: &mut impl FnMut(BrokerError),
    ) {
        if error.is_login_refused() {
            // The other nodes have the same users.
            let is_first = self.logins.lock().refused(nodes);
            let error = error.with_remedy(&format!("check {}", self.settings.nodes.describe()));
            self.health.set_login_error(Some(error.to_string()));
            if is_first {
                log(error);
            }
        } else {
            self.cursor.advance();
            log(error);
            self.pause(backoff.next_delay()).await;
        }
    }

    /// Sleeps until `delay` has passed or the settings change.
    async fn pause(&self, delay: Duration) {
        let source = &self.settings.nodes;
        let known = source.current();
        let changed = pin!(source.changed_from(&known));
        tokio::select! {
            () = sleep_until(Instant::now() + delay) => {}
            () = changed => {}
        }
    }
}

/// A failed try, and its settings.
struct Failure {
    nodes: AmqpNodes,
    error: BrokerError,
}

/// Short: a person waits for the link, and an attempt to connect costs RabbitMQ little.
pub(super) fn reconnect_backoff() -> Backoff {
    Backoff::between(Duration::from_millis(250), Duration::from_secs(1))
}
