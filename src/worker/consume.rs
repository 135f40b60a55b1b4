//! Takes deliveries from one connection until it fails, or the worker shuts down.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    connected::{Connected, settled},
    connection_log::ConnectionLog,
    context::{Context, Slot},
    prefetch::{Next, PrefetchWindow},
};
use crate::broker::{BrokerError, Delivery};

/// How long the deliveries around a suspect may take to settle. Requests held for the platform take
/// longer, and do no harm meanwhile.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Why consuming ended.
pub(super) enum End {
    Fault(BrokerError),
    Shutdown,
    /// A suspected poison message arrived together with others.
    Suspect(Box<Delivery>, Slot),
}

/// Takes deliveries and serves each in its own task.
pub(super) async fn consume(
    context: &Context,
    connected: &mut Connected,
    window: &mut PrefetchWindow,
    log: &mut ConnectionLog,
) -> End {
    let mut fault = pin!(connected.session.wait_for_fault());
    let heartbeat = &context.health.heartbeat;
    loop {
        log.consuming(&context.queue, window);
        // The permit comes first: a message that is not fetched yet may go to another replica.
        let slot = heartbeat.while_waiting(Arc::clone(&context.slots).acquire_owned());
        let slot = match until_end(context, slot, &mut fault).await {
            Ok(slot) => slot,
            Err(end) => return end,
        };
        let idle_after = window.idle_after();
        let next = tokio::select! {
            delivery = heartbeat.while_waiting(connected.session.consumer.next()) => {
                let delivery = match delivery {
                    Ok(delivery) => delivery,
                    Err(fault) => return End::Fault(fault),
                };
                let next = window.on_delivery(delivery.redeliveries());
                if next == Next::ServeAlone {
                    return End::Suspect(Box::new(delivery), slot);
                }
                context.spawn(delivery, slot, connected);
                next
            }
            // In a block, so that no timer is created while idleness means nothing.
            () = async { sleep(idle_after.unwrap_or_default()).await }, if idle_after.is_some() => {
                window.on_idle()
            }
            fault = &mut fault => return End::Fault(fault),
            () = context.shutdown.cancelled() => return End::Shutdown,
        };
        if let Next::Grow { to, when_settled } = next {
            if when_settled {
                let settled = timeout(SETTLE_LIMIT, settled(&connected.deliveries));
                if let Err(end) =
                    until_end(context, heartbeat.while_waiting(settled), &mut fault).await
                {
                    return end;
                }
            }
            match until_end(context, connected.session.consumer.set_prefetch(to), &mut fault).await
            {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => return End::Fault(fault),
                Err(end) => return end,
            }
        }
    }
}

/// Serves a suspected poison message with as little else in flight as possible, so that a worker it
/// kills takes no other message along.
pub(super) async fn serve_alone(
    context: &Context,
    connected: &mut Connected,
    suspect: Delivery,
    slot: Slot,
) {
    let fault = connected.session.wait_for_fault();
    connected.session.stop_consuming().await;
    tokio::select! {
        _ = timeout(SETTLE_LIMIT, settled(&connected.deliveries)) => {}
        () = context.shutdown.cancelled() => {}
    }
    context.spawn(suspect, slot, connected);
    tokio::select! {
        _ = timeout(SETTLE_LIMIT, settled(&connected.deliveries)) => {}
        () = context.shutdown.cancelled() => {}
        _ = fault => {}
    }
}

/// Waits for `future`, unless consuming ends first.
async fn until_end<T>(
    context: &Context,
    future: impl Future<Output = T>,
    fault: &mut (impl Future<Output = BrokerError> + Unpin),
) -> Result<T, End> {
    tokio::select! {
        done = future => Ok(done),
        fault = fault => Err(End::Fault(fault)),
        () = context.shutdown.cancelled() => Err(End::Shutdown),
    }
}
