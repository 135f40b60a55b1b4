//! Watches a client's connector: when it connects, and which protocol the server chose.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::client::legacy::connect::Connection;
use tower_layer::Layer;
use tower_service::Service;

/// Receives each connection that a client makes.
pub(super) trait ConnectWatch: Clone + Send + Sync + 'static {
    /// Lives while the connection is being made.
    type Attempt: Send;

    fn started(&self) -> Self::Attempt;

    /// TCP, the proxy and TLS are connected.
    fn connected(&self, is_http2: bool);
}

/// A layer around reqwest's connector. Nothing else shows the protocol before the first answer.
#[derive(Clone)]
pub(super) struct WatchedConnects<W>(pub(super) W);

#[derive(Clone)]
pub(super) struct WatchedConnector<W, S> {
    watch: W,
    connector: S,
}

impl<W: ConnectWatch, S> Layer<S> for WatchedConnects<W> {
    type Service = WatchedConnector<W, S>;

    fn layer(&self, connector: S) -> Self::Service {
        WatchedConnector { watch: self.0.clone(), connector }
    }
}

impl<W: ConnectWatch, R, S> Service<R> for WatchedConnector<W, S>
where
    S: Service<R, Response: Connection, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let watch = self.watch.clone();
        let attempt = watch.started();
        let connecting = self.connector.call(request);
        Box::pin(async move {
            let _attempt = attempt;
            let connection = connecting.await?;
            watch.connected(connection.connected().is_negotiated_h2());
            Ok(connection)
        })
    }
}
