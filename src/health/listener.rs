//! Connections to the probes: few at a time, and none for long.
//!
//! Whoever can reach the probes could otherwise open connections and say nothing, until the process
//! has no file descriptor left for those that matter.

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
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// How many there are at a time; one more, and the oldest goes.
const MOST: usize = 64;
/// How long one lasts. An answer takes milliseconds.
const LIFE: Duration = Duration::from_secs(5);

/// Accepts connections within these bounds.
pub(super) struct Bounded {
    listener: TcpListener,
    open: VecDeque<CancellationToken>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, open: VecDeque::new() }
    }
}

impl Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        // Each cancels its token when it ends.
        self.open.retain(|open| !open.is_cancelled());
        if self.open.len() >= MOST
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.cancel();
        }
        let open = CancellationToken::new();
        self.open.push_back(open.clone());
        let stream = BoundedStream {
            stream,
            life: Box::pin(sleep(LIFE)),
            crowded_out: Box::pin(open.clone().cancelled_owned()),
            _open: open.drop_guard(),
        };
        (stream, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends in time.
pub(super) struct BoundedStream {
    stream: TcpStream,
    life: Pin<Box<Sleep>>,
    crowded_out: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: DropGuard,
}

impl BoundedStream {
    /// The stream, as long as its time is not up.
    fn poll_live(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let up =
            self.life.as_mut().poll(cx).is_ready() || self.crowded_out.as_mut().poll(cx).is_ready();
        match up {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_live(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedStream {
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

    async fn served() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(async || "well"));
        tokio::spawn(async move { axum::serve(Bounded::new(listener), routes).await });
        addr
    }

    /// Somebody who begins to ask, and does not go on.
    async fn begun(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        stream
    }

    async fn closed(stream: &mut TcpStream) {
        let mut left = Vec::new();
        let _ = stream.read_to_end(&mut left).await;
        assert!(left.is_empty() || left.starts_with(b"HTTP/1.1 4"), "no answer, or a refusal");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_more_is_sent_away() {
        let addr = served().await;
        let began = Instant::now();
        let mut stream = begun(addr).await;
        assert!(timeout(2 * LIFE, closed(&mut stream)).await.is_ok(), "it is still there");
        assert!(began.elapsed() >= LIFE);
    }

    #[tokio::test]
    async fn a_crowd_shuts_nobody_out() {
        let addr = served().await;
        let mut crowd = Vec::new();
        for _ in 0..2 * MOST {
            crowd.push(begun(addr).await);
        }
        let mut stream = begun(addr).await;
        stream.write_all(b"host: h\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("well"), "{answer}");
        // The oldest had to go.
        for stream in &mut crowd[..=MOST] {
            let gone = timeout(LIFE / 2, closed(stream)).await;
            assert!(gone.is_ok(), "it is still there");
        }
    }
}
