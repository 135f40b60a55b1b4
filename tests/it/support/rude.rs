//! A platform with bad manners: what it says is no HTTP that a library would write.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::soon;

/// How a call is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// Accepts, and says nothing.
    Silent,
    /// A good answer, but one byte every 100 ms.
    Drips,
    /// A body that goes on for ever.
    Endless,
    /// Headers that go on for ever.
    EndlessHeaders,
    /// Ends in the middle of the body.
    Breaks,
    /// Resets the connection once it has the request.
    Resets,
    /// No HTTP at all.
    Babbles,
    /// HTTP, but these bytes for a body.
    Says(&'static [u8]),
}

pub struct Rude {
    pub url: String,
    manner: watch::Sender<Manner>,
    calls: watch::Sender<usize>,
    serving: JoinHandle<()>,
}

impl Rude {
    pub async fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (manner, calls) = (watch::Sender::new(manner), watch::Sender::new(0));
        let (now, count) = (manner.clone(), calls.clone());
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let body = Arc::new(vec![b'x'; 64 * 1024]);
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (now, count, body) = (now.clone(), count.clone(), Arc::clone(&body));
                connections.spawn(async move {
                    let _ = answer(stream, &now, &count, &body).await;
                });
            }
        });
        Self { url, manner, calls, serving }
    }

    /// From now on, answers so.
    pub fn now(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    pub fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Waits until there have been so many calls.
    pub async fn called(&self, times: usize) {
        let mut calls = self.calls.subscribe();
        soon(&format!("{times} calls"), calls.wait_for(|calls| *calls >= times)).await.unwrap();
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers one call a connection.
async fn answer(
    mut stream: TcpStream,
    manner: &watch::Sender<Manner>,
    calls: &watch::Sender<usize>,
    endless: &[u8],
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let nth = *calls.borrow();
    calls.send_replace(nth + 1);
    let token = request.starts_with(b"POST /api/device/ephemeral");
    let body = match token {
        true => format!(r#"{{"authorization":"t0ken-that-nobody-may-see {nth}"}}"#),
        false => format!(r#"{{"id":"session-{nth}"}}"#),
    };
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
    };
    let whole = head(body.len()) + &body;
    let manner = *manner.borrow();
    match manner {
        Manner::Well => stream.write_all(whole.as_bytes()).await?,
        Manner::Silent => {}
        Manner::Drips => {
            for byte in whole.bytes() {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Manner::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(endless).await?;
            }
        }
        Manner::EndlessHeaders => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream.write_all(b"x-more: ").await?;
                stream.write_all(&endless[..4096]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
        Manner::Breaks => stream.write_all(&whole.as_bytes()[..whole.len() - 3]).await?,
        Manner::Resets => {
            // With bytes still unread, closing is a reset; so is closing without lingering.
            stream.set_zero_linger()?;
            return Ok(());
        }
        Manner::Babbles => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await?,
        Manner::Says(body) => {
            stream.write_all(head(body.len()).as_bytes()).await?;
            stream.write_all(body).await?;
        }
    }
    if manner != Manner::Silent {
        return stream.shutdown().await;
    }
    std::future::pending().await
}
