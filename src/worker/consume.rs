//! Consumes from one connection until the connection fails or the worker shuts down.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::{Instant, sleep};

use super::{
    connected::{Connected, Context, Slot, settled_in_time},
    connector::Connector,
    log::ConnectionLog,
    prefetch::{Next, PrefetchWindow},
};
use crate::broker::{BrokerError, Consumer, Delivery};

/// Why consuming ended.
pub(super) enum End {
    Fault(BrokerError),
    /// The file with the nodes and credentials has changed, and a connection with them was made.
    Replaced(Box<Connected>),
    Shutdown,
    /// A suspected poison message, to be served alone.
    Suspect(Box<Delivery>, Slot),
}

/// Takes deliveries and serves each in its own task.
pub(super) async fn consume(
    context: &Context,
    connected: &mut Connected,
    connector: &mut Connector,
    window: &mut PrefetchWindow,
    log: &mut ConnectionLog,
) -> End {
    let prefetch = Arc::clone(&connector.prefetch);
    // Boxed: it has room for a connection in the making.
    let mut over = Box::pin(until_over(connected, connector));
    let heartbeat = &context.health.heartbeat;
    // The window of a replaced connection goes on, and may have changed while the new one was made.
    if connected.session.consumer.prefetch() != window.size() {
        let changing = connected.session.consumer.set_prefetch(window.size());
        match until_end(context, changing, &mut over).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => return End::Fault(fault),
            Err(end) => return end,
        }
    }
    loop {
        prefetch.store(window.size(), Ordering::Relaxed);
        log.consuming(&context.queue, window);
        // The slot comes first, so that no delivery is taken that cannot start.
        let slot = heartbeat.while_waiting(Arc::clone(&context.slots).acquire_owned());
        let slot = receiving(&mut connected.session.consumer, slot);
        let slot = match until_end(context, slot, &mut over).await {
            Ok(slot) => slot,
            Err(end) => return end,
        };
        let idle_after = window.idle_after();
        let one_at_a_time = window.is_one_at_a_time();
        let in_flight = &connected.in_flight;
        let idle = async {
            // One at a time, RabbitMQ sends nothing while a delivery is in flight.
            if one_at_a_time && !settled_in_time(in_flight).await {
                return false;
            }
            sleep(idle_after.unwrap_or_default()).await;
            true
        };
        let next = tokio::select! {
            delivery = heartbeat.while_waiting(connected.session.consumer.next()) => {
                match delivery {
                    Ok(Some(delivery)) => {
                        let redeliveries = delivery.redeliveries();
                        let next = if connected.session.consumer.is_paused() {
                            window.on_delivery_while_paused(redeliveries)
                        } else {
                            window.on_delivery(redeliveries, delivery.large_bytes())
                        };
                        if next == Next::ServeAlone {
                            return End::Suspect(Box::new(delivery), slot);
                        }
                        connected.spawn(delivery, slot, context);
                        next
                    }
                    Ok(None) if connected.session.consumer.is_paused() => Next::Resume,
                    Ok(None) => window.on_no_room(),
                    Err(fault) => return End::Fault(fault),
                }
            }
            is_idle = idle, if idle_after.is_some() => {
                if is_idle { window.on_idle() } else { window.on_slow_delivery() }
            }
            end = &mut over => return end,
            () = context.shutdown.cancelled() => return End::Shutdown,
        };
        if next == Next::Keep {
            continue;
        }
        let changed = async {
            let consumer = &mut connected.session.consumer;
            match next {
                Next::Grow { to, when_settled } => {
                    if when_settled {
                        let settled = settled_in_time(&connected.in_flight);
                        receiving(consumer, heartbeat.while_waiting(settled)).await;
                    }
                    consumer.set_prefetch(to).await?;
                    connected.grown_at = Instant::now();
                }
                Next::Narrow { to } => consumer.pause(to),
                Next::Resume => {
                    heartbeat.while_waiting(consumer.resume()).await?;
                    connected.grown_at = Instant::now();
                }
                Next::Keep | Next::ServeAlone => {}
            }
            Ok(())
        };
        match until_end(context, changed, &mut over).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => return End::Fault(fault),
            Err(end) => return end,
        }
    }
}

/// Waits until the connection is lost, or is replaced because its settings have changed.
fn until_over<'a>(
    connected: &Connected,
    connector: &'a mut Connector,
) -> impl Future<Output = End> + Send + 'a {
    let fault = connected.session.wait_for_fault();
    let replacing = connector.replace(connected.nodes.clone());
    async move {
        tokio::select! {
            fault = fault => End::Fault(fault),
            replacement = replacing => End::Replaced(Box::new(replacement)),
        }
    }
}

/// Waits for `future`, and receives deliveries meanwhile.
async fn receiving<T>(consumer: &mut Consumer, future: impl Future<Output = T>) -> T {
    tokio::select! {
        // Mostly done at once.
        biased;
        done = future => done,
        never = consumer.receive() => match never {},
    }
}

/// Serves a suspected poison message with as little else in flight as possible: if it kills the worker,
/// no other message gains a redelivery.
pub(super) async fn serve_alone(
    context: &Context,
    connected: &mut Connected,
    suspect: Delivery,
    slot: Slot,
) {
    // Changed settings can wait, and the future is polled twice.
    let fault = connected.session.wait_for_fault();
    let mut over = pin!(async move { End::Fault(fault.await) });
    connected.session.stop_consuming().await;
    let settled = settled_in_time(&connected.in_flight);
    if let Err(End::Fault(_)) = until_end(context, settled, &mut over).await {
        // RabbitMQ redelivers the others: serving the suspect here would be in vain.
        return connected.session.hand_back(suspect).await;
    }
    connected.spawn(suspect, slot, context);
    let _ = until_end(context, settled_in_time(&connected.in_flight), &mut over).await;
}

/// Waits for `future`, unless consuming ends first.
async fn until_end<T>(
    context: &Context,
    future: impl Future<Output = T>,
    over: &mut (impl Future<Output = End> + Unpin),
) -> Result<T, End> {
    tokio::select! {
        done = future => Ok(done),
        end = over => Err(end),
        () = context.shutdown.cancelled() => Err(End::Shutdown),
    }
}
