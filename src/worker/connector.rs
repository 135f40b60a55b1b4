//! Connects to RabbitMQ, and replaces a connection whose settings have changed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

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

/// Makes one connection after another. Remembers which node and which settings worked.
pub(super) struct Connector {
    settings: BrokerSettings,
    topology: Arc<Topology>,
    /// How many copies may be published at once.
    pub(super) copies: u16,
    processor: Arc<Processor>,
    health: Arc<Health>,
    /// The place among the current nodes.
    cursor: NodeCursor,
    /// The place among the former nodes, as long as the current ones have not worked.
    former_cursor: NodeCursor,
    /// The prefetch of the connection in use.
    pub(super) prefetch: Arc<AtomicU16>,
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
            former_cursor: NodeCursor::new(),
            prefetch: Arc::default(),
            frame_max: FrameMax::Small,
            logins: Logins::new(),
        }
    }

    /// Retries until connected. Calls `failed` with each error that is worth a log line.
    pub(super) async fn connect(&mut self, mut failed: impl FnMut(BrokerError)) -> Connected {
        let mut backoff = reconnect_backoff();
        loop {
            match self.try_connect(Making::AfterLoss).await {
                Ok(connected) => return connected,
                Err(failure) => {
                    self.health.set_consuming(false);
                    self.failed(failure, &mut backoff, &mut failed).await;
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
            match self.try_connect(Making::Replacement).await {
                Ok(connected) => return connected,
                Err(failure) => {
                    self.failed(failure, &mut backoff, &mut log::not_replaced).await;
                }
            }
        }
    }

    /// A connection was lost: the next one goes to another node.
    pub(super) fn lost(&mut self) {
        self.cursor.lost();
        self.former_cursor.lost();
    }

    /// Waits for the time of the next login, and connects to a node. After a loss, also with the former settings
    /// if the current ones have not worked yet.
    async fn try_connect(&mut self, making: Making) -> Result<Connected, Failure> {
        let source = &self.settings.nodes;
        let (nodes, is_former) = loop {
            // A rotated password, for example.
            source.look().await;
            let current = source.current();
            match self.logins.next(&current, making == Making::AfterLoss) {
                NextLogin::Now(nodes) => {
                    let is_former = !nodes.is_same(&current);
                    break (nodes, is_former);
                }
                NextLogin::At(at) => {
                    if making == Making::AfterLoss {
                        self.health.set_consuming(false);
                    }
                    let _ = timeout_at(at, source.changed_from(&current)).await;
                }
            }
        };
        let prefetch = match making {
            // A message may be poison.
            Making::AfterLoss => 1,
            Making::Replacement => self.prefetch.load(Ordering::Relaxed).max(1),
        };
        let session = BrokerSession::open(
            Arc::clone(&self.topology),
            &nodes,
            if is_former { &self.former_cursor } else { &self.cursor },
            self.copies,
            prefetch,
            self.frame_max,
            Arc::clone(&self.processor.metrics),
        );
        match session.await {
            Ok(session) => {
                self.cursor_of(is_former).served();
                if is_former {
                    log::former_settings();
                }
                let are_current = nodes.is_same(&self.settings.nodes.current());
                self.logins.accepted(&nodes, are_current);
                if are_current {
                    self.health.set_login_error(None);
                }
                Ok(Connected::new(session, nodes, &self.processor))
            }
            Err(error) => Err(Failure { nodes, is_former, error }),
        }
    }

    fn cursor_of(&mut self, is_former: bool) -> &mut NodeCursor {
        if is_former { &mut self.former_cursor } else { &mut self.cursor }
    }

    /// Records a failed try, and waits unless it was a login, whose time [`Logins`] knows.
    async fn failed(
        &mut self,
        Failure { nodes, is_former, mut error }: Failure,
        backoff: &mut Backoff,
        log: &mut impl FnMut(BrokerError),
    ) {
        let source = &self.settings.nodes;
        let current = source.current();
        let is_refused = error.is_login_refused();
        let was_never_served = !is_former && self.logins.former(&current).is_some();
        if is_refused || was_never_served {
            error = error.with_remedy(&format!("check {}", source.describe()));
            self.health.set_login_error(Some(error.to_string()));
        }
        if is_refused {
            // The other nodes have the same users.
            if self.logins.refused(&nodes) {
                log(error);
            }
        } else {
            self.logins.failed(&nodes);
            self.cursor_of(is_former).advance();
            log(error);
            let source = &self.settings.nodes;
            let _ = timeout(backoff.next_delay(), source.changed_from(&current)).await;
        }
    }
}

/// What a connection is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Making {
    /// There is no other, or no longer.
    AfterLoss,
    /// The settings have changed, and the former connection still serves.
    Replacement,
}

/// A failed try, and its settings.
struct Failure {
    nodes: AmqpNodes,
    is_former: bool,
    error: BrokerError,
}

/// Short: a person waits for the link, and an attempt to connect costs RabbitMQ little.
pub(super) fn reconnect_backoff() -> Backoff {
    Backoff::between(Duration::from_millis(250), Duration::from_secs(1))
}
