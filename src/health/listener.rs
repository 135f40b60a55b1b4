//! Limits the number and the lifetime of connections to the probes.
//!
//! Without limits, a client that opens connections and sends nothing uses up the process's file
//! descriptors, and RabbitMQ and Redis become unreachable.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Timeout, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The number of open connections; accepting one more closes the oldest.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may stay open. An answer takes milliseconds.
const LIFETIME: Duration = Duration::from_secs(5);

/// Accepts at most [`MAX_CONNECTIONS`] connections, each for at most [`LIFETIME`].
pub(super) struct LimitedListener {
    listener: TcpListener,
    open: VecDeque<CancellationToken>,
}

impl LimitedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, open: VecDeque::new() }
    }
}

impl Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        // A connection cancels its token when it ends.
        self.open.retain(|open| !open.is_cancelled());
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.cancel();
        }
        let open = CancellationToken::new();
        self.open.push_back(open.clone());
        let stream = LimitedStream {
            stream,
            expired_or_evicted: Box::pin(timeout(LIFETIME, open.clone().cancelled_owned())),
            _open: open.drop_guard(),
        };
        (stream, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when it expires or is evicted.
pub(super) struct LimitedStream {
    stream: TcpStream,
    expired_or_evicted: Pin<Box<Timeout<WaitForCancellationFutureOwned>>>,
    _open: DropGuard,
}

impl LimitedStream {
    /// Returns the stream, or an error once the connection is expired or evicted.
    fn poll_live(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        if self.expired_or_evicted.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_live(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_live(cx)?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_live(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::{Instant, timeout},
    };

    use super::*;

    async fn serve() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(async || "fine"));
        tokio::spawn(async move { axum::serve(LimitedListener::new(listener), routes).await });
        addr
    }

    /// Sends the start of a request.
    async fn start_request(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        stream
    }

    async fn wait_until_closed(stream: &mut TcpStream) {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "nothing, or an error");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connection_is_closed_after_its_lifetime() {
        let addr = serve().await;
        let began = Instant::now();
        let mut stream = start_request(addr).await;
        assert!(timeout(2 * LIFETIME, wait_until_closed(&mut stream)).await.is_ok(), "still open");
        assert!(began.elapsed() >= LIFETIME);
    }

    #[tokio::test]
    async fn new_connection_is_served_despite_many_silent_ones() {
        let addr = serve().await;
        let mut silent = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            silent.push(start_request(addr).await);
        }
        let mut stream = start_request(addr).await;
        stream.write_all(b"host: h\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("fine"), "{answer}");
        // The oldest were closed.
        for stream in &mut silent[..=MAX_CONNECTIONS] {
            let closed = timeout(LIFETIME / 2, wait_until_closed(stream)).await;
            assert!(closed.is_ok(), "still open");
        }
    }
}
