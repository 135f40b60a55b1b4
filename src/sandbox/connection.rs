//! Accepts connections and serves them.
//!
//! It uses hyper directly: short of a panic, a handler of axum 0.8 cannot close a connection without
//! an answer (not reported upstream).

use std::{pin::pin, sync::Arc};

use axum::{body::Body, response::Response, serve::Listener};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
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
        connections.spawn(serve(stream, Arc::clone(&service), stopping.clone()));
    }
}

/// Serves a connection until the caller closes it or, when the sandbox stops, it is idle.
async fn serve(stream: TcpStream, service: Arc<Service>, stopping: CancellationToken) {
    let answer = service_fn(|request| answer(&service, request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    tokio::select! {
        // An error ends the connection, and no caller is left to report it to.
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
