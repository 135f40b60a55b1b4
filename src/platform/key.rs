//! The API key, which may be replaced while the worker runs.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use reqwest::header::HeaderValue;
use secrecy::ExposeSecret;
use tokio::task::spawn_blocking;

use crate::config::{ApiKey, read_api_key};

/// The key as it is sent, and where it is read again.
pub(super) struct Key {
    header: Mutex<HeaderValue>,
    file: Option<PathBuf>,
}

impl Key {
    /// `None` where it cannot be sent as a header, which the settings have checked.
    pub(super) fn new(key: &ApiKey) -> Option<Self> {
        let header = header(key.value.expose_secret())?;
        Some(Self { header: Mutex::new(header), file: key.file.clone() })
    }

    /// The key as the `Authorization` header carries it.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the key file again, if the key came from one. Where there is no good key in it, the former
    /// stays.
    pub(super) async fn reload(&self) {
        let Some(file) = self.file.clone() else { return };
        // The file may lie somewhere slow.
        let read = spawn_blocking(move || read_api_key(&file)).await;
        let read = read.unwrap_or_else(|_| Err("could not be read".to_owned()));
        match read.map(|key| header(key.expose_secret())) {
            Ok(Some(new)) => {
                let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
                if std::mem::replace(&mut *header, new.clone()) != new {
                    tracing::info!("the key file holds another API key");
                }
            }
            // One that passed for a header value is one.
            Ok(None) => {}
            Err(why) => {
                tracing::warn!("HANDOFF_IDV_API_KEY_FILE {why}; the former API key stays in use")
            }
        }
    }
}

fn header(key: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_bytes(key.as_bytes()).ok()?;
    header.set_sensitive(true);
    Some(header)
}
