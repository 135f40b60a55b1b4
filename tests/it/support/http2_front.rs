//! An HTTP/2 server over TLS in front of a platform that speaks HTTP/1.1, as load balancers are.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::{Request, Response, header::RETRY_AFTER};
use h2::{RecvStream, server::SendResponse};
use hyper::body::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::tls::{Identity, acceptor_for, tls_url};

/// How the front serves each connection.
#[derive(Clone, Copy, Debug)]
pub struct FrontOptions {
    /// The streams that it permits, as its SETTINGS say.
    pub max_streams: Option<u32>,
    /// Answers more calls at once than this with `REFUSED_STREAM`.
    pub refused_above: usize,
    /// After this many calls it sends a GOAWAY without an error, and leaves later ones unanswered.
    pub calls_per_connection: u32,
    /// It makes one TLS handshake at a time, and each takes this long.
    pub handshake: Duration,
}

impl Default for FrontOptions {
    fn default() -> Self {
        Self {
            max_streams: None,
            refused_above: usize::MAX,
            calls_per_connection: u32::MAX,
            handshake: Duration::ZERO,
        }
    }
}

/// What the front offers in the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2 and HTTP/1.1.
    Both,
    /// HTTP/1.1; a client that knows only HTTP/2 is refused.
    Http1,
    /// Nothing: it speaks HTTP/1.1, whatever the client offers.
    Unnamed,
}

impl Protocols {
    fn acceptor(self, identity: &Identity) -> TlsAcceptor {
        acceptor_for(
            identity,
            match self {
                Self::Both => &["h2", "http/1.1"],
                Self::Http1 => &["http/1.1"],
                Self::Unnamed => &[],
            },
        )
    }
}

/// The server. It stops when it is dropped.
pub struct Http2Front {
    pub url: String,
    connections: Arc<AtomicUsize>,
    protocols: watch::Sender<Protocols>,
    listening: JoinHandle<()>,
}

impl Http2Front {
    /// Starts one in front of the server of a URL.
    pub async fn to(url: &str, identity: &Identity, options: FrontOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
        let acceptors = [Protocols::Both, Protocols::Http1, Protocols::Unnamed]
            .map(|protocols| (protocols, protocols.acceptor(identity)));
        let protocols = watch::Sender::new(Protocols::Both);
        let offered = protocols.subscribe();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let platform = Platform {
            url: url.trim_end_matches('/').into(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        };
        let handshake = Arc::new(Mutex::new(()));
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                client.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let protocols = *offered.borrow();
                let (_, acceptor) = acceptors.iter().find(|(of, _)| *of == protocols).unwrap();
                let (acceptor, platform) = (acceptor.clone(), platform.clone());
                let handshake = Arc::clone(&handshake);
                let serving = async move {
                    if !options.handshake.is_zero() {
                        let _turn = handshake.lock().await;
                        sleep(options.handshake).await;
                    }
                    serve(client, acceptor, platform, options).await;
                };
                let mut offered = offered.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = serving => {}
                        _ = offered.wait_for(|now| *now != protocols) => {}
                    }
                });
            }
        });
        let url = tls_url(url, addr.port()).replace("127.0.0.1", "localhost");
        Self { url, connections, protocols, listening }
    }

    /// Changes what it speaks, and closes all connections.
    pub fn set_protocols(&self, protocols: Protocols) {
        self.protocols.send_replace(protocols);
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Http2Front {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

#[derive(Clone)]
struct Platform {
    url: Arc<str>,
    client: reqwest::Client,
}

/// Serves one connection. Errors mean that the client has closed it.
async fn serve(
    client: TcpStream,
    acceptor: TlsAcceptor,
    platform: Platform,
    options: FrontOptions,
) {
    let Ok(client) = acceptor.accept(client).await else { return };
    if client.get_ref().1.alpn_protocol() != Some(b"h2") {
        let Ok(mut server) = TcpStream::connect(platform.url.trim_start_matches("http://")).await
        else {
            return;
        };
        let mut client = client;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
    let (inject, injected) = mpsc::unbounded_channel();
    let client =
        Injecting { io: client, injected, frame: Vec::new(), position: Position::default() };
    let mut builder = h2::server::Builder::new();
    if let Some(max) = options.max_streams {
        builder.max_concurrent_streams(max);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(client).await else { return };
    let in_flight = Arc::new(AtomicUsize::new(0));
    let mut calls = JoinSet::new();
    let mut unanswered = Vec::new();
    let mut count = 0;
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        count += 1;
        if count > options.calls_per_connection {
            unanswered.push((request, respond));
            continue;
        }
        if count == options.calls_per_connection {
            let _ = inject.send(go_away(respond.stream_id().into()));
        }
        if in_flight.load(Ordering::Relaxed) >= options.refused_above {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = Arc::clone(&in_flight);
        let platform = platform.clone();
        calls.spawn(async move {
            let _ = forward(request, respond, &platform).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn forward(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    platform: &Platform,
) -> Result<(), h2::Error> {
    let (head, mut stream) = request.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let path = head.uri.path_and_query().unwrap().as_str();
    let request = platform.client.post(format!("{}{path}", platform.url)).headers(head.headers);
    let answer = tokio::select! {
        answer = request.body(body).send() => answer,
        // The client waits no longer.
        _ = poll_fn(|context| respond.poll_reset(context)) => return Ok(()),
    };
    let Ok(answer) = answer else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    };
    let mut response = Response::builder().status(answer.status());
    if let Some(value) = answer.headers().get(RETRY_AFTER) {
        response = response.header(RETRY_AFTER, value);
    }
    let mut stream = respond.send_response(response.body(()).unwrap(), false)?;
    match answer.bytes().await {
        Ok(body) => stream.send_data(body, true)?,
        // The platform has broken off in the middle of its answer.
        Err(_) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
    }
    Ok(())
}

/// RFC 9113, section 6.8: no error, and the last stream that will be answered.
fn go_away(last_stream: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
    frame.extend(last_stream.to_be_bytes());
    frame.extend([0; 4]);
    frame
}

/// Writes frames of its own between those of h2, whose server cannot send a GOAWAY and go on answering.
struct Injecting<S> {
    io: S,
    injected: mpsc::UnboundedReceiver<Vec<u8>>,
    /// What remains of the frame being injected.
    frame: Vec<u8>,
    position: Position,
}

/// Where in the server's frames the next byte is: how much of a frame's head has been written, the
/// payload's length as far as that shows it, and how much of the payload has been written.
#[derive(Clone, Copy, Default)]
struct Position {
    head: usize,
    length: usize,
    payload: usize,
}

impl Position {
    const HEAD: usize = 9;

    fn advance(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.head == Self::HEAD {
                self.payload += 1;
            } else {
                if self.head < 3 {
                    self.length = self.length << 8 | usize::from(*byte);
                }
                self.head += 1;
            }
            if self.head == Self::HEAD && self.payload == self.length {
                *self = Self::default();
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.head == 0
    }

    /// How many of these bytes belong to the frame that is being written.
    fn rest_of_frame(mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|byte| {
            self.advance(&[*byte]);
            self.is_between_frames()
        });
        end.map_or(bytes.len(), |last| last + 1)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Injecting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Injecting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.position.is_between_frames() {
            while let Ok(frame) = this.injected.try_recv() {
                this.frame.extend(frame);
            }
            while !this.frame.is_empty() {
                let written = ready!(Pin::new(&mut this.io).poll_write(context, &this.frame))?;
                this.frame.drain(..written);
            }
        }
        let end = this.position.rest_of_frame(bytes);
        let written = ready!(Pin::new(&mut this.io).poll_write(context, &bytes[..end]))?;
        this.position.advance(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
