//! The worker's main loop: connect, consume, reconnect, drain.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    connected::Connected,
    connection_log::{ConnectLog, ConnectionLog},
    consume::{End, consume, serve_alone},
    context::Context,
    prefetch::PrefetchWindow,
};
use crate::{
    broker::{BrokerError, BrokerSession, ConsumerCount, FrameMax},
    config::BrokerSettings,
    platform::ReplicaCount,
    retry::Backoff,
};

/// A connection that breaks sooner than this counts as a failed attempt to connect.
const STEADY: Duration = Duration::from_secs(1);
/// The part of the grace period that closing the connections may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The main loop.
pub(super) struct Run {
    pub(super) context: Context,
    pub(super) broker: BrokerSettings,
    /// Requests in flight at most, and so the full prefetch window.
    pub(super) concurrency: u16,
    pub(super) grace: Duration,
    /// The replicas that share a rate limit, if there is one.
    pub(super) replicas: Option<Arc<ReplicaCount>>,
}

impl Run {
    /// Consumes until `shutdown`, on one connection after another, then drains.
    pub(super) async fn until_shutdown(self) {
        let mut window = PrefetchWindow::new(self.concurrency);
        let mut frames = FrameMax::Small;
        let mut backoff = reconnect_backoff();
        let mut log = ConnectionLog::new();
        let mut connections: u64 = 0;
        while let Some(mut connected) = self.connect(frames).await {
            connections += 1;
            if connections > 1 {
                self.context.processor.metrics.broker.reconnected();
                window.reconnected();
            }
            self.context.health.set_consuming(true);
            log.connected();
            let connected_at = Instant::now();
            let consumers = connected.session.consumer_count();
            let end = tokio::select! {
                end = consume(&self.context, &mut connected, &mut window, &mut log) => end,
                never = self.count_replicas(consumers) => match never {},
            };
            self.context.health.set_consuming(false);
            match end {
                End::Shutdown => return self.drain_with_heartbeat(Some(connected)).await,
                End::Suspect(suspect, slot) => {
                    log.replaced();
                    let alone = serve_alone(&self.context, &mut connected, *suspect, slot);
                    self.context.health.heartbeat.while_waiting(alone).await;
                }
                End::Fault(fault) => {
                    log.lost(&fault);
                    let broke_at_once = connected_at.elapsed() < STEADY;
                    if fault.is_frame_too_large() && frames == FrameMax::Small {
                        frames = FrameMax::Server;
                    } else if is_poison(&fault, broke_at_once, &connected) {
                        window.suspect_poison();
                    }
                    if !broke_at_once {
                        backoff.reset();
                    } else if !fault.is_undecodable() {
                        self.pause(backoff.next_delay()).await;
                    }
                }
            }
            tokio::spawn(connected.retire());
        }
        self.drain_with_heartbeat(None).await;
    }

    /// Counts the queue's consumers whenever the rate limit asks for it.
    async fn count_replicas(&self, consumers: ConsumerCount) -> Infallible {
        let Some(replicas) = &self.replicas else { return std::future::pending().await };
        loop {
            if let Ok(count) = consumers.query().await {
                replicas.set(count);
            }
            replicas.count_requested().await;
        }
    }

    /// Connects, however long it takes. `None` on shutdown.
    async fn connect(&self, frames: FrameMax) -> Option<Connected> {
        let mut backoff = reconnect_backoff();
        let mut log = ConnectLog::new();
        while !self.context.shutdown.is_cancelled() {
            let metrics = Arc::clone(&self.context.processor.metrics);
            let attach = BrokerSession::open(&self.broker, self.concurrency, frames, metrics);
            let session = tokio::select! {
                session = self.context.health.heartbeat.while_waiting(attach) => session,
                () = self.context.shutdown.cancelled() => break,
            };
            match session {
                Ok(session) => return Some(Connected::new(session)),
                Err(error) => log.failed(error),
            }
            self.pause(backoff.next_delay()).await;
        }
        None
    }

    /// Sleeps until `delay` has passed or the worker shuts down.
    async fn pause(&self, delay: Duration) {
        let _ = timeout(delay, self.context.shutdown.cancelled()).await;
        self.context.health.heartbeat.beat();
    }

    async fn drain_with_heartbeat(self, connected: Option<Connected>) {
        let health = Arc::clone(&self.context.health);
        health.heartbeat.while_waiting(self.drain(connected)).await;
    }

    /// Finishes the requests in flight, requeues those that take longer than the grace period, closes.
    async fn drain(self, connected: Option<Connected>) {
        tracing::info!(in_flight = self.context.tasks.len(), "shutting down");
        self.context.tasks.close();
        let end = Instant::now() + self.grace;
        let close_limit = CLOSE_LIMIT.min(self.grace / 4);
        let mut session = connected.map(|connected| connected.session);
        let stop = async {
            if let Some(session) = &mut session {
                session.stop_consuming().await;
            }
        };
        let finish = async { tokio::join!(stop, self.context.tasks.wait()) };
        if timeout_at(end - close_limit, finish).await.is_err() {
            tracing::warn!(
                in_flight = self.context.tasks.len(),
                "grace period over: requeueing the requests in flight"
            );
            self.context.processor.grace_over.cancel();
            let _ = timeout_at(end - close_limit / 2, self.context.tasks.wait()).await;
        }
        let close = async {
            if let Some(session) = session {
                session.close().await;
            }
        };
        let flush = self.context.processor.traces.shut_down();
        let _ = timeout_at(end, async { tokio::join!(close, flush) }).await;
        tracing::info!("stopped");
    }
}

/// Stays short: a person waits for the link, and an attempt costs RabbitMQ little.
fn reconnect_backoff() -> Backoff {
    Backoff::between(Duration::from_millis(250), Duration::from_secs(1))
}

/// Whether a delivery probably broke the connection: it was unreadable, or the connection broke right
/// after the first deliveries.
fn is_poison(fault: &BrokerError, broke_at_once: bool, connected: &Connected) -> bool {
    fault.is_undecodable()
        || (fault.is_connection_lost() && broke_at_once && !connected.deliveries.is_empty())
}
