//! Which HTTP version the platform speaks.

use tokio::sync::watch;

/// What is known of the platform's HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Unknown,
    /// One call is connecting; its handshake will show the version.
    Asking,
    Http1,
    Http2,
}

/// The HTTP version that the platform chose, when it was last asked in a TLS handshake.
#[derive(Clone)]
pub(super) struct ProtocolWatch(watch::Sender<Protocol>);

/// One call at a time finds out. If it fails, nothing is known again.
pub(super) struct Asking<'a>(&'a ProtocolWatch);

impl ProtocolWatch {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Protocol::Unknown))
    }

    /// Lets the caller find out the version, unless it is known or another call is finding out.
    pub(super) fn ask(&self) -> Option<Asking<'_>> {
        // Read first: each call asks.
        let is_unknown = *self.0.borrow() == Protocol::Unknown;
        (is_unknown && self.change(Protocol::Unknown, Protocol::Asking)).then_some(Asking(self))
    }

    /// Waits while another call finds out the version, and returns what is known then.
    pub(super) async fn known(&self) -> Protocol {
        let current = *self.0.borrow();
        if current != Protocol::Asking {
            return current;
        }
        let mut protocol = self.0.subscribe();
        let known = protocol.wait_for(|protocol| *protocol != Protocol::Asking).await;
        // Cannot fail: `self` holds the sender.
        known.map_or(Protocol::Unknown, |known| *known)
    }

    pub(super) fn set(&self, is_http2: bool) {
        let protocol = if is_http2 { Protocol::Http2 } else { Protocol::Http1 };
        self.0.send_if_modified(|current| std::mem::replace(current, protocol) != protocol);
    }

    /// Forgets the version if it is HTTP/2, which no longer works: the next call finds it out again.
    pub(super) fn forget_http2(&self) {
        self.change(Protocol::Http2, Protocol::Unknown);
    }

    fn change(&self, from: Protocol, to: Protocol) -> bool {
        self.0.send_if_modified(|current| {
            let matches = *current == from;
            if matches {
                *current = to;
            }
            matches
        })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.change(Protocol::Asking, Protocol::Unknown);
    }
}
