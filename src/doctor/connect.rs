//! Connects to a server: name resolution, TCP, TLS.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::Url;

use super::{certificate, check::Check, format::span};
use crate::tls::{self, NO_AUTHORITY};

/// Time limit of all three steps together.
const LIMIT: Duration = Duration::from_secs(5);

/// A TCP or TLS connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to a server.
pub(super) struct ServerConnection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) took: Duration,
    /// When the first of its certificates expires; `None` without TLS.
    pub(super) valid_until: Option<SystemTime>,
}

impl ServerConnection {
    /// The checks of a connection that was made.
    pub(super) fn checks(&self) -> impl Iterator<Item = Check> {
        let certificate =
            self.valid_until.map(|until| certificate::check(until, SystemTime::now()));
        [Check::ok("connection", format!("connected in {}", span(self.took)))]
            .into_iter()
            .chain(certificate)
    }
}

/// Connects to the server of a URL. The error never contains the URL.
pub(super) async fn connect(url: &Url, default_port: u16) -> Result<ServerConnection, String> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(default_port);
    let start = Instant::now();
    let connecting = async {
        let tcp = TcpStream::connect((host, port)).await.map_err(|e| tls::explain_io(&e))?;
        if !matches!(url.scheme(), "https" | "amqps" | "rediss") {
            let stream: Box<dyn Stream> = Box::new(tcp);
            return Ok((stream, None));
        }
        let stream = handshake(host, tcp).await?;
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let valid_until = certificate::valid_until(presented, SystemTime::now());
        Ok((Box::new(stream) as Box<dyn Stream>, valid_until))
    };
    let connection = timeout(LIMIT, connecting).await;
    let (stream, valid_until) =
        connection.unwrap_or_else(|_| Err("no answer in time".to_owned()))?;
    Ok(ServerConnection { stream, took: start.elapsed(), valid_until })
}

/// Trusts what the libraries of the worker trust.
async fn handshake(host: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(NO_AUTHORITY.to_owned());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the host is not a valid name")?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.map_err(|error| tls::explain_io(&error))
}
