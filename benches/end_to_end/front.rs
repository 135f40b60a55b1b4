//! TLS in front of what the subjects talk to. Runs in a process of its own, `end-to-end front`, so
//! that its cost is not counted as a subject's.
//!
//! The platform is a sandbox in that same process, since another hop would take a processor that
//! the subjects need. It is served at two ports, by HTTP/1.1 and by either version, and without TLS
//! at a third. RabbitMQ and Redis are behind proxies.
//!
//! The first line on stdout is [`Addresses`]. For each line on stdin there is one with the
//! [`Connections`] since the last one.

use std::{
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    sync::Arc,
};

use handoff::sandbox::{Options, Sandbox};
use reqwest::Version;
use serde::{Deserialize, Serialize};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        HandshakeKind, ServerConfig,
        crypto::aws_lc_rs::{Ticketer, default_provider},
        version::TLS13,
    },
    server::TlsStream,
};

use crate::{API_KEY, Result, certificates};

/// Where everything listens.
#[derive(Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// The platform without TLS.
    pub(crate) plain: String,
    /// The platform's port for HTTP/1.1, and the one for either version.
    pub(crate) http1: u16,
    pub(crate) http2: u16,
    pub(crate) amqps: u16,
    pub(crate) rediss: u16,
}

/// TLS connections to the platform since the last look.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
    open: u64,
    pub(crate) max_open: u64,
}

type Count = Arc<Mutex<Connections>>;

/// Serves until stdin ends. `amqp` and `redis` are addresses.
pub(crate) async fn run(folder: &Path, amqp: String, redis: String) -> Result<()> {
    let options = Options { api_key: API_KEY.to_owned(), ..Options::default() };
    let sandbox = Sandbox::start(TcpListener::bind("127.0.0.1:0").await?, options)?;
    let count = Count::default();
    let addresses = Addresses {
        plain: sandbox.url(),
        http1: serve_platform(folder, &["http/1.1"], &sandbox, &count).await?,
        http2: serve_platform(folder, &["h2", "http/1.1"], &sandbox, &count).await?,
        amqps: proxy(folder, amqp).await?,
        rediss: proxy(folder, redis).await?,
    };
    print(&addresses)?;
    let looks = tokio::task::spawn_blocking(move || {
        for line in stdin().lock().lines() {
            line?;
            let mut count = count.blocking_lock();
            print(&*count)?;
            *count = Connections { open: count.open, max_open: count.open, ..Default::default() };
        }
        Ok(())
    });
    looks.await?
}

fn print(line: &impl Serialize) -> Result<()> {
    let mut stdout = stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(line)?)?;
    Ok(stdout.flush()?)
}

async fn serve_platform(
    folder: &Path,
    protocols: &[&str],
    sandbox: &Sandbox,
    count: &Count,
) -> Result<u16> {
    let (sandbox, count) = (sandbox.clone(), Arc::clone(count));
    listen(folder, protocols, move |stream| {
        let (sandbox, count) = (sandbox.clone(), Arc::clone(&count));
        async move {
            let session = stream.get_ref().1;
            let version = match session.alpn_protocol() {
                Some(b"h2") => Version::HTTP_2,
                _ => Version::HTTP_11,
            };
            let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
            let mut now = count.lock().await;
            now.handshakes += 1;
            now.resumed += u64::from(resumed);
            now.open += 1;
            now.max_open = now.max_open.max(now.open);
            drop(now);
            sandbox.serve_connection(stream, version).await;
            count.lock().await.open -= 1;
        }
    })
    .await
}

async fn proxy(folder: &Path, server: String) -> Result<u16> {
    let server: Arc<str> = server.into();
    listen(folder, &[], move |mut client| {
        let server = Arc::clone(&server);
        async move {
            let Ok(mut server) = TcpStream::connect(&*server).await else { return };
            let _ = server.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
    })
    .await
}

/// Accepts TLS 1.3 connections in the background, and returns the port.
async fn listen<F>(
    folder: &Path,
    protocols: &[&str],
    serve: impl Fn(TlsStream<TcpStream>) -> F + Clone + Send + 'static,
) -> Result<u16>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (chain, key) = certificates::read(folder)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().into()).collect();
    // Sessions can be resumed, as with most servers.
    config.ticketer = Ticketer::new()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            });
        }
    });
    Ok(port)
}
