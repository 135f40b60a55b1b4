//! Connects to a server: name resolution, TCP, TLS.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::Url;

use super::{certificate::Expiry, check::Check, format::span};
use crate::tls::{self, NO_AUTHORITY};

/// Time limit of all three steps together.
const LIMIT: Duration = Duration::from_secs(5);

/// A TCP or TLS connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to the server of a URL, and adds what the connection shows.
///
/// The finding of a failed connection never contains the URL.
pub(super) async fn connect(
    server: &str,
    url: &Url,
    default_port: u16,
    checks: &mut Vec<Check>,
) -> Result<Box<dyn Stream>, Check> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(default_port);
    let start = Instant::now();
    let connecting = async {
        let tcp = TcpStream::connect((host, port)).await.map_err(|e| tls::explain_io(&e))?;
        if !matches!(url.scheme(), "https" | "amqps" | "rediss") {
            return Ok((Box::new(tcp) as Box<dyn Stream>, None));
        }
        let stream = handshake(host, tcp).await?;
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let expiry = Expiry::of(presented);
        Ok((Box::new(stream) as Box<dyn Stream>, expiry))
    };
    let connected = timeout(LIMIT, connecting).await;
    let (stream, expiry) =
        connected.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(|why| {
            Check::finding("connection", format!("cannot connect to {server}: {why}"))
        })?;
    checks.push(Check::ok("connection", format!("connected in {}", span(start.elapsed()))));
    checks.extend(expiry.map(|expiry| expiry.check(SystemTime::now())));
    Ok(stream)
}

/// Trusts what the libraries of the worker trust.
async fn handshake(host: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(NO_AUTHORITY.to_owned());
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the host is not a valid name")?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.map_err(|error| tls::explain_io(&error))
}
