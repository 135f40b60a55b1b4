//! Looking after the topology while requests are taken.
//!
//! A queue that is deleted ends the subscription, and a missing exchange fails a publish; both are
//! mended at once. That nobody can publish requests any more, though, since their exchange or its
//! binding is gone, shows nowhere here: it looks like an empty queue.

use std::{convert::Infallible, sync::Arc, time::Duration};

use lapin::Connection;
use tokio::time::sleep;

use super::Topology;

/// How long the exchange of requests may be missing. Declaring what is there costs RabbitMQ little.
const EVERY: Duration = Duration::from_secs(10);

/// Declares the topology again and again, or, where declaring is off, checks it. What does not work
/// is told once, and ends nothing: requests are still taken.
pub(super) async fn look_after(topology: Arc<Topology>, connection: Arc<Connection>) -> Infallible {
    let mut told = None;
    loop {
        sleep(EVERY).await;
        let error = topology.ensure(&connection).await.err();
        // A connection that broke is told by whoever mends it.
        if let Some(error) = &error
            && connection.status().connected()
            && told.as_ref() != Some(error)
        {
            tracing::warn!(%error, "the topology is not as it should be; requests are taken all the same");
        }
        told = error;
    }
}
