//! A call to the platform's API, as it arrived.

use std::time::Instant;

use axum::{
    body::{Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, request::Parts},
};
use serde::Serialize;

/// Longest accepted body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// One of the endpoints of the platform's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Endpoint {
    /// `POST /api/device/ephemeral`: issues a token.
    Token,
    /// `POST /api/sessions`: makes a session.
    Session,
    /// `POST /api/v1/deeplink`: makes a session and its link.
    Deeplink,
}

impl Endpoint {
    pub(super) const ALL: [Self; 3] = [Self::Token, Self::Session, Self::Deeplink];

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Token => "/api/device/ephemeral",
            Self::Session => "/api/sessions",
            Self::Deeplink => "/api/v1/deeplink",
        }
    }
}

/// An extension of a response: the connection is closed instead of sending it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
pub(super) struct ClosedConnection;

/// A call to the platform's API, as it arrived.
#[derive(Debug)]
pub struct ApiCall {
    pub(super) endpoint: Endpoint,
    pub(super) arrived_at: Instant,
    pub(super) parts: Parts,
    /// `None`: longer than [`MAX_BODY`].
    pub(super) body: Option<Bytes>,
}

impl ApiCall {
    pub(super) async fn read(endpoint: Endpoint, request: Request) -> Self {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, MAX_BODY).await.ok();
        Self { endpoint, arrived_at: Instant::now(), parts, body }
    }

    /// The endpoint that was called.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// When the whole request had arrived.
    pub fn arrived_at(&self) -> Instant {
        self.arrived_at
    }

    /// The path of the URL, with any prefix, percent-encoded.
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// The query of the URL, percent-encoded.
    pub fn query(&self) -> Option<&str> {
        self.parts.uri.query()
    }

    /// The headers, secrets included.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The body; empty if it was longer than 64 KiB.
    pub fn body(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }
}
