//! Accepts connections and serves them.
//!
//! It uses hyper directly: short of a panic, a handler of axum 0.8 cannot close a connection without
//! an answer (not reported upstream).

use std::{pin::pin, sync::Arc};

use axum::{body::Body, response::Response, serve::Listener};
use hyper::{
    Request, Version,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{call::ClosedConnection, routes::Service};

/// Accepts connections until the sandbox stops.
pub(super) async fn accept_all(
    mut listener: TcpListener,
    service: Arc<Service>,
    connections: TaskTracker,
    stopping: CancellationToken,
) {
    // axum's `accept` waits and retries when the process has no file descriptor left.
    while let Some((stream, _)) =
        stopping.run_until_cancelled(Listener::accept(&mut listener)).await
    {
        // Answers are small and written at once, so Nagle's algorithm only delays them. A failure
        // costs nothing but speed.
        let _ = stream.set_nodelay(true);
        let service = Arc::clone(&service);
        connections.spawn(serve(stream, Version::HTTP_11, service, stopping.clone()));
    }
}

/// Streams of one HTTP/2 connection at once: as many as nginx and AWS's load balancers permit.
const MAX_STREAMS: u32 = 128;

/// Serves a connection until the caller closes it or, when the sandbox stops, it is idle.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
    service: Arc<Service>,
    stopping: CancellationToken,
) {
    let stream = TokioIo::new(stream);
    if version == Version::HTTP_2 {
        let answer = service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { answer(&service, request).await }
        });
        let mut server = http2::Builder::new(TokioExecutor::new());
        server.max_concurrent_streams(MAX_STREAMS);
        let mut connection = pin!(server.serve_connection(stream, answer));
        tokio::select! {
            // An error ends the connection, and no caller is left to report it to.
            _ = connection.as_mut() => return,
            () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
        return;
    }
    let answer = service_fn(|request| answer(&service, request));
    let mut connection = pin!(http1::Builder::new().serve_connection(stream, answer));
    tokio::select! {
        // As above.
        _ = connection.as_mut() => return,
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Answers a request. On an error, hyper closes the connection without an answer.
async fn answer(
    service: &Service,
    request: Request<Incoming>,
) -> Result<Response, ClosedConnection> {
    let response = service.serve(request.map(Body::new)).await;
    match response.extensions().get::<ClosedConnection>() {
        Some(closed) => Err(*closed),
        None => Ok(response),
    }
}
