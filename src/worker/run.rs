//! The worker's main loop: connect, consume, reconnect, drain.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    connected::{Connected, Context},
    connector::{Connector, reconnect_backoff},
    consume::{End, consume, serve_alone},
    log::{self, ConnectionLog},
    prefetch::PrefetchWindow,
};
use crate::{
    broker::{BrokerError, FrameMax, Publisher},
    config::BrokerSettings,
    platform::ReplicaCount,
};

/// A connection that is lost sooner than this counts as a failed attempt to connect.
const MIN_UPTIME: Duration = Duration::from_secs(1);
/// How long requests go on until RabbitMQ has cancelled the consumer. It would deliver to it again what they
/// return before, and count that towards the delivery limit.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);
/// Time reserved at the end of the grace period for closing the connections.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The main loop.
pub(super) struct MainLoop {
    pub(super) context: Context,
    pub(super) broker: BrokerSettings,
    /// The most requests in flight; also the largest prefetch window.
    pub(super) concurrency: u16,
    pub(super) grace: Duration,
    /// The number of replicas that share the rate limit; `None` without a rate limit.
    pub(super) replicas: Option<Arc<ReplicaCount>>,
}

impl MainLoop {
    /// Consumes on one connection after another until shutdown, then drains.
    pub(super) async fn run(self) {
        let mut window = PrefetchWindow::new(self.concurrency);
        let processor = Arc::clone(&self.context.processor);
        let health = Arc::clone(&self.context.health);
        let mut connector =
            Connector::new(self.broker.clone(), self.concurrency, processor, health);
        let mut short_lived_backoff = reconnect_backoff();
        let mut log = ConnectionLog::new();
        let mut reconnecting = false;
        let mut replacement = None;
        loop {
            let mut connected = match replacement.take() {
                // Nothing was lost, so no delivery is suspected: the prefetch window stays as it is.
                Some(connected) => connected,
                None => match self.connect(&mut connector, &mut log).await {
                    Some(connected) => {
                        window.on_reconnect();
                        connected
                    }
                    None => break,
                },
            };
            if std::mem::replace(&mut reconnecting, true) {
                self.context.processor.metrics.broker.reconnected();
            }
            self.context.health.set_consuming(true);
            log.connected();
            let connected_at = Instant::now();
            let publisher = connected.session.publisher.clone();
            let end = tokio::select! {
                end = consume(&self.context, &mut connected, &mut connector, &mut window, &mut log) => end,
                never = self.count_replicas(publisher) => match never {},
            };
            let mut pause = None;
            match end {
                End::Shutdown => {
                    self.context.health.set_consuming(false);
                    return self.drain_with_heartbeat(Some(connected)).await;
                }
                // The replica stays ready: the next connection follows within seconds.
                End::Suspect(suspect, slot) => {
                    log.serving_alone(suspect.redeliveries());
                    let alone = serve_alone(&self.context, &mut connected, *suspect, slot);
                    self.context.health.heartbeat.while_waiting(alone).await;
                }
                // The deliveries in flight are settled on the former connection.
                End::Replaced(new) => {
                    log.settings_changed();
                    replacement = Some(*new);
                }
                End::Fault(fault) => {
                    self.context.health.set_consuming(false);
                    connector.lost();
                    log.lost(&fault);
                    if let Some(timeout) = fault.consumer_timeout() {
                        self.context.processor.hold.on_consumer_timeout(timeout);
                    }
                    if fault.is_too_many_channels() {
                        if connector.copies > 1 {
                            log::fewer_channels();
                        }
                        connector.copies = 1;
                    } else if fault.is_frame_too_large() && connector.frame_max == FrameMax::Small {
                        connector.frame_max = FrameMax::Large;
                    } else if is_caused_by_delivery(&fault, &connected) {
                        window.on_poison();
                    }
                    if connected_at.elapsed() >= MIN_UPTIME {
                        short_lived_backoff.reset();
                    } else if !fault.is_undecodable() {
                        // Not for an undecodable message: each delivery brings it closer to its
                        // delivery limit, and the others wait behind it.
                        pause = Some(short_lived_backoff.next_delay());
                    }
                }
            }
            self.context.retiring.spawn(connected.retire());
            if let Some(delay) = pause {
                self.pause(delay).await;
            }
        }
        self.drain_with_heartbeat(None).await;
    }

    /// Updates the number of replicas whenever the rate limiter asks for it.
    async fn count_replicas(&self, publisher: Publisher) -> Infallible {
        let Some(replicas) = &self.replicas else { return std::future::pending().await };
        loop {
            // Without an answer the rate limiter assumes its last count.
            if let Ok(count) = publisher.consumer_count().await {
                replicas.set(count);
            }
            replicas.count_requested().await;
        }
    }

    /// Retries until connected. `None` on shutdown.
    async fn connect(
        &self,
        connector: &mut Connector,
        log: &mut ConnectionLog,
    ) -> Option<Connected> {
        let Context { health, shutdown, .. } = &self.context;
        let connecting = connector.connect(|error| log.not_connected(error));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            connected = health.heartbeat.while_waiting(connecting) => Some(connected),
        }
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

    /// Waits for the requests in flight, requeues those that do not finish within the grace period, and
    /// closes the connections.
    async fn drain(self, connected: Option<Connected>) {
        let Context { processor, tasks, retiring, draining, health, .. } = self.context;
        tracing::info!(in_flight = tasks.len(), "shutting down");
        health.set_stopping();
        tasks.close();
        retiring.close();
        let close_limit = CLOSE_LIMIT.min(self.grace / 4);
        let exit_at = Instant::now() + self.grace;
        let requeue_at = exit_at - close_limit;
        let close_at = exit_at - close_limit / 2;

        let (mut session, endings) = connected.map(Connected::into_parts).unzip();
        let stop_endings = async {
            if let Some(endings) = endings {
                endings.stop().await;
            }
        };
        let stop = async {
            if let Some(session) = &mut session {
                let mut stopping = pin!(session.stop_consuming());
                if timeout(CANCEL_LIMIT, &mut stopping).await.is_err() {
                    draining.cancel();
                    stopping.await;
                }
            }
            draining.cancel();
        };
        let finish = async { tokio::join!(stop, stop_endings, tasks.wait()) };
        if timeout_at(requeue_at, finish).await.is_err() {
            tracing::warn!(
                in_flight = tasks.len(),
                "grace period over: requeueing the requests in flight"
            );
            processor.grace_over.cancel();
            let _ = timeout_at(close_at, tasks.wait()).await;
        }
        let close = async {
            if let Some(session) = session {
                session.close().await;
            }
        };
        let retired = timeout(CLOSE_LIMIT, retiring.wait());
        let close = async { tokio::join!(close, retired, processor.traces.shut_down()) };
        let _ = timeout_at(exit_at, close).await;
        tracing::info!("stopped");
    }
}

/// Whether a delivery probably broke the connection: it could not be decoded, or the connection was lost
/// with deliveries in flight, right after more were fetched.
fn is_caused_by_delivery(fault: &BrokerError, connected: &Connected) -> bool {
    let just_fetched = connected.grown_at.elapsed() < MIN_UPTIME && !connected.in_flight.is_empty();
    fault.is_undecodable() || (fault.is_connection_lost() && just_fetched)
}
