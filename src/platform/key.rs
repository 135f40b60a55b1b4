//! The API key, which may be replaced while the worker runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use secrecy::ExposeSecret;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::config::{ApiKey, read_api_key};

/// Time limit for reading the key file, which may be on a slow file system, or be a pipe that never
/// ends.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// The API key as a header, and the file to read it from again.
pub(super) struct ReloadableKey {
    header: Mutex<HeaderValue>,
    file: Option<PathBuf>,
    /// The error of the last read, so that each error is logged once.
    last_error: Mutex<Option<String>>,
    /// Lets one thread read at a time: a hanging read cannot be cancelled, and more must not join it.
    reader: Arc<Semaphore>,
}

impl ReloadableKey {
    /// Returns `None` if the key is not a valid header value.
    pub(super) fn new(key: &ApiKey) -> Option<Self> {
        Some(Self {
            header: Mutex::new(header(key.value.expose_secret())?),
            file: key.file.clone(),
            last_error: Mutex::default(),
            reader: Arc::new(Semaphore::new(1)),
        })
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.lock().clone()
    }

    /// Reads the key file again, if there is one. Keeps the previous key if the file has no valid one.
    pub(super) async fn reload(&self) {
        let Some(file) = self.file.clone() else { return };
        let read = timeout(READ_LIMIT, self.read(file)).await;
        let read =
            read.unwrap_or_else(|_| Err("names a file that takes too long to read".to_owned()));
        let error = read.as_ref().err().cloned();
        let last_error = std::mem::replace(&mut *self.last_error.lock(), error);
        match read {
            Ok(new) => {
                let mut current = self.header.lock();
                if *current != new {
                    *current = new;
                    tracing::info!("API key file changed: using the new API key");
                }
            }
            Err(error) if last_error.as_ref() == Some(&error) => {}
            Err(error) => {
                let error = format_args!("HANDOFF_IDV_API_KEY_FILE: {error}");
                tracing::warn!(%error, "API key file is invalid: keeping the previous API key");
            }
        }
    }

    async fn read(&self, file: PathBuf) -> Result<HeaderValue, String> {
        let unreadable = || "names a file that cannot be read".to_owned();
        let turn = Arc::clone(&self.reader).acquire_owned().await;
        let read = spawn_blocking(move || {
            let _turn = turn;
            header(read_api_key(&file)?.expose_secret()).ok_or_else(unreadable)
        });
        read.await.unwrap_or_else(|_| Err(unreadable()))
    }
}

fn header(key: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_bytes(key.as_bytes()).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_file_is_an_error() {
        let error = read_api_key(std::path::Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error, "names a file of more than 64 KiB");
    }

    #[tokio::test]
    async fn hanging_key_file_does_not_block_a_reload() {
        let path = std::env::temp_dir().join(format!("handoff-{}", uuid::Uuid::new_v4()));
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let key =
            ReloadableKey::new(&ApiKey { value: "k".into(), file: Some(path.clone()) }).unwrap();
        let reload = async {
            key.reload().await;
            key.reload().await;
        };
        let ended = timeout(Duration::from_secs(5), reload).await.is_ok();
        // Unblocks the thread that reads the pipe.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(ended, "still reading");
    }
}
