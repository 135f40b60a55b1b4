//! The API key, which may be replaced while the worker runs.

use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use crate::config::Watched;

/// The API key as a header. Follows the key file.
pub(super) struct ReloadableKey {
    key: Watched<SecretString>,
    /// The header, and the key that it was made from.
    header: Mutex<(Arc<SecretString>, HeaderValue)>,
}

impl ReloadableKey {
    /// Returns `None` if the key is not a valid header value.
    pub(super) fn new(key: &Watched<SecretString>) -> Option<Self> {
        let current = key.current();
        let header = header(current.expose_secret())?;
        Some(Self { key: key.clone(), header: Mutex::new((current, header)) })
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> HeaderValue {
        let current = self.key.current();
        let mut cached = self.header.lock();
        // Always `Some`: the setting's parser checks that the key is a header value.
        if !Arc::ptr_eq(&cached.0, &current)
            && let Some(header) = header(current.expose_secret())
        {
            *cached = (current, header);
        }
        cached.1.clone()
    }

    /// Reads the key file again, if there is one. Keeps the previous key if the file has no valid one.
    pub(super) async fn reload(&self) {
        self.key.look().await;
    }
}

fn header(key: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_bytes(key.as_bytes()).ok()?;
    header.set_sensitive(true);
    Some(header)
}
