//! A request body that shows whether a call still waits for its turn on a connection.
//!
//! hyper 1.12 takes the body of a request only once the request is written: over HTTP/2, once the server
//! permits another stream (`ClientTask::poll` in `proto/h2/client.rs` polls it after h2's `poll_ready`); over
//! HTTP/1.1, once the connection has taken the request's head. Until then the platform has not received the
//! call, so it may be withdrawn and sent on another connection.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use hyper::body::{Body, Bytes, Frame, SizeHint};

const WAITING: u8 = 0;
const SENT: u8 = 1;
const ENDED: u8 = 2;

/// How far the sending of one call is.
#[derive(Debug)]
pub(super) struct Progress {
    state: AtomicU8,
    /// The number of calls on the same connection that are sent and not yet answered.
    sent_there: Arc<AtomicUsize>,
    /// Waits for the sending.
    waker: AtomicWaker,
}

/// The body; ends the request with an error if the call was withdrawn.
pub(super) struct TrackedBody {
    bytes: Option<Bytes>,
    progress: Arc<Progress>,
}

/// The call was withdrawn before it was sent.
#[derive(Debug, thiserror::Error)]
#[error("withdrawn before it was sent")]
pub(super) struct Withdrawn;

impl Progress {
    pub(super) fn new(sent_there: Arc<AtomicUsize>) -> Self {
        Self { state: AtomicU8::new(WAITING), sent_there, waker: AtomicWaker::new() }
    }

    /// Whether the platform may have received the call.
    pub(super) fn is_sent(&self) -> bool {
        self.state.load(Ordering::Relaxed) == SENT
    }

    /// Waits until the platform may have received the call.
    pub(super) async fn sent(&self) {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_sent() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Withdraws the call. Returns false if it is sent already.
    pub(super) fn withdraw(&self) -> bool {
        self.change(WAITING, ENDED)
    }

    fn send(&self) -> bool {
        let permitted = self.change(WAITING, SENT);
        if permitted {
            self.sent_there.fetch_add(1, Ordering::Relaxed);
            self.waker.wake();
        }
        permitted
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The call has ended, with or without an answer.
    pub(super) fn end(&self) {
        if self.state.swap(ENDED, Ordering::Relaxed) == SENT {
            self.sent_there.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl TrackedBody {
    pub(super) fn new(bytes: Bytes, progress: Arc<Progress>) -> Self {
        Self { bytes: Some(bytes), progress }
    }
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        let frame = if self.progress.send() { Ok(Frame::data(bytes)) } else { Err(Withdrawn) };
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, Bytes::len) as u64)
    }
}
