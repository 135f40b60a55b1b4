//! Connects to RabbitMQ, and replaces a connection whose settings have changed.

use std::{sync::Arc, time::Duration};

use tokio::time::{timeout, timeout_at};

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
pub(super) struct Connector {
    settings: BrokerSettings,
    topology: Arc<Topology>,
    /// How many copies may be published at once.
    pub(super) copies: u16,
    processor: Arc<Processor>,
    health: Arc<Health>,
    pub(super) cursor: NodeCursor,
    pub(super) frame_max: FrameMax,
    logins: Logins,
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
            settings,
            copies: concurrency,
            processor,
            health,
            cursor: NodeCursor::new(),
            frame_max: FrameMax::Small,
            logins: Logins::new(),
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
    pub(super) async fn replace(&mut self, former: AmqpNodes) -> Connected {
        self.settings.nodes.changed_from(&former).await;
        // No request waits. RabbitMQ may have a limit on connections that leaves no room for a second pair.
        let mut backoff = Backoff::between(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            match self.try_connect(false).await {
                Ok(connected) => return connected,
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
            match self.logins.next(&current, or_former) {
                NextLogin::Now(nodes) => break nodes,
                NextLogin::At(at) => {
                    if or_former {
                        self.health.set_consuming(false);
                    }
                    let _ = timeout_at(at, source.changed_from(&current)).await;
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
                self.logins.accepted(&nodes, are_current);
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
            let is_first = self.logins.refused(nodes);
            let error = error.with_remedy(&format!("check {}", self.settings.nodes.describe()));
            self.health.set_login_error(Some(error.to_string()));
            if is_first {
                log(error);
            }
        } else {
            self.cursor.advance();
            log(error);
            let source = &self.settings.nodes;
            let _ = timeout(backoff.next_delay(), source.changed_from(&source.current())).await;
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
