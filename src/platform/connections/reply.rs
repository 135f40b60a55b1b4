//! The result of sending a call: the head of the answer, or why there is none.

use hyper::body::Bytes;
use reqwest::{
    Response, StatusCode, Version,
    header::{HeaderMap, HeaderName},
};
use rustls::{AlertDescription, Error as TlsError};

use super::http2::Http2Call;
use crate::error_chain;

/// The head of an answer; its body is still to be read.
pub(in crate::platform) struct Reply<'a> {
    response: Response,
    /// The call's place on an HTTP/2 connection, needed until the body is read.
    http2: Option<Http2Call<'a>>,
}

/// Why a call has no answer, or only a part of one.
#[derive(Debug)]
pub(in crate::platform) struct TransportError {
    /// `None`: the call timed out before it was given to reqwest.
    error: Option<reqwest::Error>,
    may_have_arrived: bool,
}

impl<'a> Reply<'a> {
    pub(super) fn new(response: Response, http2: Option<Http2Call<'a>>) -> Self {
        Self { response, http2 }
    }

    pub(in crate::platform) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(in crate::platform) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header, unless it is missing or not text.
    pub(in crate::platform) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    pub(super) fn version(&self) -> Version {
        self.response.version()
    }

    /// The next piece of the body.
    pub(in crate::platform) async fn chunk(&mut self) -> Result<Option<Bytes>, TransportError> {
        self.response.chunk().await.map_err(|error| {
            if let Some(call) = self.http2.as_ref().filter(|_| error.is_timeout()) {
                call.timed_out();
            }
            TransportError::new(error)
        })
    }
}

impl TransportError {
    /// A call whose sending was not tracked: it counts as sent, unless the error shows that it was not.
    pub(super) fn new(error: reqwest::Error) -> Self {
        let may_have_arrived = !was_not_processed(&error);
        Self { error: Some(error.without_url()), may_have_arrived }
    }

    /// A call that is known to be sent or not.
    pub(super) fn tracked(error: reqwest::Error, sent: bool) -> Self {
        let may_have_arrived = sent && !was_not_processed(&error);
        Self { error: Some(error.without_url()), may_have_arrived }
    }

    /// A call that timed out before it could be sent.
    pub(super) fn not_started() -> Self {
        Self { error: None, may_have_arrived: false }
    }

    /// Whether the platform may have received the call, and may still be processing it.
    pub(in crate::platform) fn may_have_arrived(&self) -> bool {
        self.may_have_arrived
    }

    pub(in crate::platform) fn is_timeout(&self) -> bool {
        self.error.as_ref().is_none_or(reqwest::Error::is_timeout)
    }

    pub(in crate::platform) fn is_connect(&self) -> bool {
        self.error.as_ref().is_some_and(reqwest::Error::is_connect)
    }

    /// The call could not connect, rather than wait for another call to connect.
    pub(super) fn is_own_connect(&self) -> bool {
        self.is_connect() && !self.waited_for_another()
    }

    /// The call certainly did not reach the platform, and another connection may carry it.
    pub(super) fn can_be_repeated(&self) -> bool {
        !self.may_have_arrived && !self.is_own_connect()
    }

    /// The call waited for a connection that another call was making, and that call failed or was dropped.
    ///
    /// hyper-util 0.1.21 does not export the error of its pool (not reported upstream), so its text is
    /// compared.
    fn waited_for_another(&self) -> bool {
        let cause = self.cause().and_then(|error| error_chain::chain(error).last());
        cause.is_some_and(|cause| cause.to_string() == "request was canceled")
    }

    /// The body could not be read. reqwest 0.13.5 makes every error while it reads a body a decode error,
    /// timeouts included (seanmonstar/reqwest#2839).
    pub(in crate::platform) fn is_body(&self) -> bool {
        self.error.as_ref().is_some_and(reqwest::Error::is_decode)
    }

    /// The answer was not HTTP.
    pub(in crate::platform) fn is_not_http(&self) -> bool {
        let error = self.cause().and_then(|error| error_chain::find::<hyper::Error>(error));
        error.is_some_and(hyper::Error::is_parse)
    }

    /// The server permits no more streams on this HTTP/2 connection.
    pub(super) fn is_refused_stream(&self) -> bool {
        let error = self.cause().and_then(|error| error_chain::find::<h2::Error>(error));
        error.and_then(h2::Error::reason) == Some(h2::Reason::REFUSED_STREAM)
    }

    /// The platform's TLS refuses HTTP/2.
    pub(super) fn is_http2_refused(&self) -> bool {
        let error = self.cause().and_then(|error| error_chain::find::<TlsError>(error));
        matches!(error, Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)))
    }

    /// reqwest's error, whose sources may explain more.
    pub(in crate::platform) fn cause(&self) -> Option<&reqwest::Error> {
        self.error.as_ref()
    }
}

/// Whether a call certainly did not reach the platform, or was returned unprocessed.
fn was_not_processed(error: &reqwest::Error) -> bool {
    error.is_connect()
        // Set for a request that waited for a connection when that ended.
        || error_chain::find::<hyper::Error>(error).is_some_and(hyper::Error::is_canceled)
        || error_chain::find::<h2::Error>(error).is_some_and(|error| {
            // RFC 9113, section 8.7: streams above the last id of a GOAWAY, and refused streams, were not
            // processed. h2 0.4 reports a GOAWAY only to streams above its last id.
            error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        })
}
