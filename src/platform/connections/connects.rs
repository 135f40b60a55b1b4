//! Watches a client's connector: when it connects, and which protocol the server chose.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::Connection;
use tower_layer::Layer;
use tower_service::Service;

/// Receives each connection that a client makes.
pub(super) trait ConnectWatch: Clone + Send + Sync + 'static {
    /// Lives while the connection is being made.
    type Attempt: Send;

    /// Waits until the connection may be made. `None`: it is not needed any more.
    fn admitted(&self) -> impl Future<Output = Option<Self::Attempt>> + Send;

    /// TCP, the proxy and TLS are connected.
    fn connected(&self, is_http2: bool);
}

/// The call has been sent on another connection. Nothing receives this error.
#[derive(Debug, thiserror::Error)]
#[error("the connection is not needed any more")]
struct NotNeeded;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A layer around reqwest's connector. Nothing else shows the protocol before the first answer.
#[derive(Clone)]
pub(super) struct WatchedConnects<W>(pub(super) W);

pub(super) struct WatchedConnector<W, S> {
    watch: W,
    /// Shared, because hyper-util 0.1.21 clones its connector for each call, mostly without using the clone: a clone
    /// of reqwest's counts seven references and allocates.
    connector: Arc<S>,
}

impl<W: Clone, S> Clone for WatchedConnector<W, S> {
    fn clone(&self) -> Self {
        Self { watch: self.watch.clone(), connector: Arc::clone(&self.connector) }
    }
}

impl<W: ConnectWatch, S> Layer<S> for WatchedConnects<W> {
    type Service = WatchedConnector<W, S>;

    fn layer(&self, connector: S) -> Self::Service {
        WatchedConnector { watch: self.0.clone(), connector: Arc::new(connector) }
    }
}

impl<W: ConnectWatch, R, S> Service<R> for WatchedConnector<W, S>
where
    R: Send + 'static,
    S: Service<R, Response: Connection, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The clone that connects is asked.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let watch = self.watch.clone();
        let mut connector = S::clone(&self.connector);
        Box::pin(async move {
            let _attempt = watch.admitted().await.ok_or(NotNeeded)?;
            poll_fn(|context| connector.poll_ready(context)).await?;
            let connection = connector.call(request).await?;
            watch.connected(connection.connected().is_negotiated_h2());
            Ok(connection)
        })
    }
}
