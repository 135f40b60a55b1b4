//! The API key, which may be replaced while the worker runs.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::config::{ApiKey, read_api_key};

/// How long the file may take to be read. It may lie somewhere slow, or be one that never ends.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// The key as it is sent, and where it is read again.
pub(super) struct Key {
    header: Mutex<HeaderValue>,
    file: Option<PathBuf>,
    /// What was wrong with the file when it was read last; told once.
    told: Mutex<Option<String>>,
    /// One thread at a time reads: one that hangs cannot be ended, and must not become many.
    reader: Arc<Semaphore>,
}

impl Key {
    /// `None` where it cannot be sent as a header, which the settings have checked.
    pub(super) fn new(key: &ApiKey) -> Option<Self> {
        let header = header(key.value.expose_secret())?;
        let reader = Arc::new(Semaphore::new(1));
        let (header, told) = (Mutex::new(header), Mutex::default());
        Some(Self { header, file: key.file.clone(), told, reader })
    }

    /// The key as the `Authorization` header carries it.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the key file again, if the key came from one. Where there is no good key in it, the former
    /// stays.
    pub(super) async fn reload(&self) {
        let Some(file) = self.file.clone() else { return };
        let read = timeout(READ_LIMIT, self.read(file)).await;
        let read =
            read.unwrap_or_else(|_| Err("names a file that takes too long to read".to_owned()));
        let wrong = read.as_ref().err().cloned();
        let told_before = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *told, wrong.clone()) == wrong
        };
        match read.map(|key| header(key.expose_secret())) {
            Ok(Some(new)) => {
                let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
                if std::mem::replace(&mut *header, new.clone()) != new {
                    tracing::info!("the key file holds another API key");
                }
            }
            // One that passed for a header value is one.
            Ok(None) => {}
            Err(_) if told_before => {}
            Err(why) => {
                tracing::warn!("HANDOFF_IDV_API_KEY_FILE {why}; the former API key stays in use")
            }
        }
    }

    async fn read(&self, file: PathBuf) -> Result<SecretString, String> {
        let turn = Arc::clone(&self.reader).acquire_owned().await;
        let read = spawn_blocking(move || {
            let _turn = turn;
            read_api_key(&file)
        });
        read.await.unwrap_or_else(|_| Err("names a file that cannot be read".to_owned()))
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
    fn a_file_without_end_is_no_key() {
        let error = read_api_key(std::path::Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error, "names a file of more than 64 KiB");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_to_its_end_holds_nobody_up() {
        let path = std::env::temp_dir().join(format!("handoff-{}", uuid::Uuid::new_v4()));
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let key = Key::new(&ApiKey { value: "k".into(), file: Some(path.clone()) }).unwrap();
        let reload = async {
            key.reload().await;
            key.reload().await;
        };
        let ended = timeout(Duration::from_secs(5), reload).await.is_ok();
        // Sets free whoever reads.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(ended, "still reading");
    }
}
