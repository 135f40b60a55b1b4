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

/// The calls of some connections, by how far they are.
#[derive(Debug, Default)]
pub(super) struct CallCounts {
    /// Not sent yet: they wait for a connection, or for a stream on it.
    waiting: AtomicUsize,
    /// Sent and not yet answered.
    sent: AtomicUsize,
}

/// How far the sending of one call is.
#[derive(Debug)]
pub(super) struct Progress {
    state: AtomicU8,
    counts: Arc<CallCounts>,
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

impl CallCounts {
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Progress {
    pub(super) fn new(counts: Arc<CallCounts>) -> Self {
        counts.waiting.fetch_add(1, Ordering::Relaxed);
        Self { state: AtomicU8::new(WAITING), counts, waker: AtomicWaker::new() }
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

    /// Waits until the tasks that are ready now have run, or the platform may have received the call.
    ///
    /// Not `yield_now`, which waits for I/O events first.
    pub(super) async fn let_others_run(&self) {
        let mut has_waited = self.is_sent();
        poll_fn(|context| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Withdraws the call. Returns false if it is sent already.
    pub(super) fn withdraw(&self) -> bool {
        self.leave_waiting(ENDED)
    }

    fn send(&self) -> bool {
        let permitted = self.leave_waiting(SENT);
        if permitted {
            self.counts.sent.fetch_add(1, Ordering::Relaxed);
            self.waker.wake();
        }
        permitted
    }

    fn leave_waiting(&self, to: u8) -> bool {
        let order = Ordering::Relaxed;
        let waited = self.state.compare_exchange(WAITING, to, order, order).is_ok();
        if waited {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        waited
    }

    /// The call has ended, with or without an answer.
    pub(super) fn end(&self) {
        match self.state.swap(ENDED, Ordering::Relaxed) {
            WAITING => self.counts.waiting.fetch_sub(1, Ordering::Relaxed),
            SENT => self.counts.sent.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
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
