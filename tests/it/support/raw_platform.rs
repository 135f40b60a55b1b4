//! A platform on raw TCP, for answers that an HTTP library cannot produce.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::wait::within_timeout;

/// What the platform writes in answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawAnswer {
    /// A good token or session.
    Valid,
    /// The same, without announcing that the connection is closed after it.
    ValidWithSilentClose,
    /// Nothing; the connection stays open.
    Silent,
    /// A good answer, one byte every 100 ms.
    SlowBytes,
    /// A body without an end.
    EndlessBody,
    /// Headers without an end.
    EndlessHeaders,
    /// A good answer that lacks the last three bytes of its body.
    TruncatedBody,
    /// A TCP reset once the request's head is read.
    Reset,
    /// The greeting of an SSH server.
    NotHttp,
    /// Status 200 with this body.
    Body(&'static [u8]),
}

/// The server. It stops when it is dropped.
pub struct RawPlatform {
    pub url: String,
    answer: watch::Sender<RawAnswer>,
    calls: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl RawPlatform {
    pub async fn new(answer: RawAnswer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = watch::Sender::new(answer);
        let calls = watch::Sender::new(0);
        let server = tokio::spawn(serve(listener, answer.clone(), calls.clone()));
        Self { url, answer, calls, server }
    }

    /// Changes the answer for all later calls.
    pub fn set_answer(&self, answer: RawAnswer) {
        self.answer.send_replace(answer);
    }

    pub fn calls(&self) -> usize {
        *self.calls.borrow()
    }

    /// Waits until there have been `count` calls since the start.
    pub async fn wait_for_calls(&self, count: usize) {
        let mut calls = self.calls.subscribe();
        within_timeout(&format!("{count} calls"), calls.wait_for(|calls| *calls >= count))
            .await
            .unwrap();
    }
}

impl Drop for RawPlatform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    listener: TcpListener,
    answer: watch::Sender<RawAnswer>,
    calls: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    let filler: Arc<[u8]> = vec![b'x'; 64 * 1024].into();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = answer.clone();
        let calls = calls.clone();
        let filler = Arc::clone(&filler);
        connections.spawn(async move {
            // An error here means that the worker gave the connection up.
            let _ = serve_connection(stream, &answer, &calls, &filler).await;
        });
    }
}

/// Answers one call and closes the connection.
async fn serve_connection(
    mut stream: TcpStream,
    answer: &watch::Sender<RawAnswer>,
    calls: &watch::Sender<usize>,
    filler: &[u8],
) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let nth = *calls.borrow();
    calls.send_replace(nth + 1);
    let body = if request.starts_with(b"POST /api/device/ephemeral") {
        format!(r#"{{"authorization":"t0ken-must-not-leak {nth}"}}"#)
    } else {
        format!(r#"{{"id":"session-{nth}"}}"#)
    };
    let valid = head(body.len()) + &body;
    let answer = *answer.borrow();
    match answer {
        RawAnswer::Valid => stream.write_all(valid.as_bytes()).await?,
        RawAnswer::ValidWithSilentClose => {
            // An unread body would make the close a reset.
            let length = |head: &[u8]| {
                let head = std::str::from_utf8(head).unwrap().to_ascii_lowercase();
                let length = head.split_once("content-length: ").unwrap().1;
                length.split_once('\r').unwrap().0.parse::<usize>().unwrap()
            };
            let end = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            let whole = end + length(&request[..end]);
            while request.len() < whole {
                stream.read_buf(&mut request).await?;
            }
            let silent = valid.replace("connection: close\r\n", "");
            stream.write_all(silent.as_bytes()).await?;
            // Long enough for the client to use the connection again.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        RawAnswer::Silent => std::future::pending().await,
        RawAnswer::SlowBytes => {
            for byte in valid.bytes() {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        RawAnswer::EndlessBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(filler).await?;
            }
        }
        RawAnswer::EndlessHeaders => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                stream.write_all(b"x-more: ").await?;
                stream.write_all(&filler[..4096]).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
        RawAnswer::TruncatedBody => stream.write_all(&valid.as_bytes()[..valid.len() - 3]).await?,
        RawAnswer::Reset => {
            // Closing without lingering sends a reset.
            stream.set_zero_linger()?;
            return Ok(());
        }
        RawAnswer::NotHttp => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await?,
        RawAnswer::Body(body) => {
            stream.write_all(head(body.len()).as_bytes()).await?;
            stream.write_all(body).await?;
        }
    }
    stream.shutdown().await
}

fn head(content_length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {content_length}\r\nconnection: close\r\n\r\n")
}
