//! Takes deliveries from one connection until it fails, or the worker shuts down.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit},
    time::{sleep, timeout},
};

use super::{
    connected::{Connected, settled},
    connection_log::ConnectionLog,
    prefetch::{Next, PrefetchWindow},
    run::Run,
};
use crate::broker::{BrokerError, Delivery};

/// How long the deliveries around a suspect may take to settle. Requests held for the platform take
/// longer, and do no harm meanwhile.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// A place among the requests in flight. The semaphore is never closed, so this is always `Ok`.
pub(super) type Slot = Result<OwnedSemaphorePermit, AcquireError>;

/// Why consuming ended.
pub(super) enum End {
    Fault(BrokerError),
    Shutdown,
    /// A suspected poison message arrived together with others.
    Suspect(Box<Delivery>, Slot),
}

/// Takes deliveries and serves each in its own task.
pub(super) async fn consume(
    run: &Run,
    connected: &mut Connected,
    window: &mut PrefetchWindow,
    log: &mut ConnectionLog,
) -> End {
    let mut fault = pin!(connected.session.wait_for_fault());
    let heartbeat = &run.health.heartbeat;
    loop {
        log.consuming(&run.broker.queue, window);
        // The permit comes first: a message that is not fetched yet may go to another replica.
        let slot = heartbeat.while_waiting(Arc::clone(&run.slots).acquire_owned());
        let slot = match until_end(run, slot, &mut fault).await {
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
                run.spawn(delivery, slot, connected);
                next
            }
            // In a block, so that no timer is created while idleness means nothing.
            () = async { sleep(idle_after.unwrap_or_default()).await }, if idle_after.is_some() => {
                window.on_idle()
            }
            fault = &mut fault => return End::Fault(fault),
            () = run.shutdown.cancelled() => return End::Shutdown,
        };
        if let Next::Grow { to, when_settled } = next {
            if when_settled {
                let settled = timeout(SETTLE_LIMIT, settled(&connected.deliveries));
                if let Err(end) = until_end(run, heartbeat.while_waiting(settled), &mut fault).await
                {
                    return end;
                }
            }
            match until_end(run, connected.session.consumer.set_prefetch(to), &mut fault).await {
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
    run: &Run,
    connected: &mut Connected,
    suspect: Delivery,
    slot: Slot,
) {
    let fault = connected.session.wait_for_fault();
    connected.session.stop_consuming().await;
    tokio::select! {
        _ = timeout(SETTLE_LIMIT, settled(&connected.deliveries)) => {}
        () = run.shutdown.cancelled() => {}
    }
    run.spawn(suspect, slot, connected);
    tokio::select! {
        _ = timeout(SETTLE_LIMIT, settled(&connected.deliveries)) => {}
        () = run.shutdown.cancelled() => {}
        _ = fault => {}
    }
}

/// Waits for `future`, unless consuming ends first.
async fn until_end<T>(
    run: &Run,
    future: impl Future<Output = T>,
    fault: &mut (impl Future<Output = BrokerError> + Unpin),
) -> Result<T, End> {
    tokio::select! {
        done = future => Ok(done),
        fault = fault => Err(End::Fault(fault)),
        () = run.shutdown.cancelled() => Err(End::Shutdown),
    }
}
