//! Connections that the sandbox can close without an answer.
//!
//! Short of a panic, a handler of axum 0.8 has no way to do that: the server always answers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// Closes one connection.
#[derive(Clone, Debug, Default)]
pub(super) struct CloseHandle(Arc<AtomicBool>);

impl CloseHandle {
    /// Fails all later writes, upon which the server drops the connection.
    pub(super) fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check_open(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// Accepts connections that have a [`CloseHandle`].
pub(super) struct ClosableListener(pub(super) TcpListener);

impl Listener for ClosableListener {
    type Io = ClosableStream;
    // The handle takes the place of the peer's address, which no handler needs.
    type Addr = CloseHandle;

    async fn accept(&mut self) -> (ClosableStream, CloseHandle) {
        let (stream, _) = Listener::accept(&mut self.0).await;
        // Answers are small and written at once, so Nagle's algorithm only delays them. A failure
        // costs nothing but speed.
        let _ = stream.set_nodelay(true);
        let handle = CloseHandle::default();
        (ClosableStream { stream, handle: handle.clone() }, handle)
    }

    fn local_addr(&self) -> io::Result<CloseHandle> {
        Ok(CloseHandle::default())
    }
}

impl Connected<IncomingStream<'_, ClosableListener>> for CloseHandle {
    fn connect_info(stream: IncomingStream<'_, ClosableListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A TCP stream that fails all writes once its [`CloseHandle`] is used.
pub(super) struct ClosableStream {
    stream: TcpStream,
    handle: CloseHandle,
}

impl AsyncRead for ClosableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClosableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.check_open()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.handle.check_open()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
