//! A connection: name resolution, TCP, TLS.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::certificate::Expiry;
use crate::tls::{self, NO_AUTHORITY};

/// A TCP or TLS connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to a host, with or without TLS.
pub(super) async fn open(
    host: &str,
    port: u16,
    is_tls: bool,
) -> Result<(Box<dyn Stream>, Option<Expiry>), String> {
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| tls::explain_io(&e))?;
    secure(host, Box::new(tcp), is_tls).await
}

/// Adds TLS to a connection, if wanted.
pub(super) async fn secure(
    host: &str,
    stream: Box<dyn Stream>,
    is_tls: bool,
) -> Result<(Box<dyn Stream>, Option<Expiry>), String> {
    if !is_tls {
        return Ok((stream, None));
    }
    let stream = handshake(host, stream).await?;
    let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let expiry = Expiry::of(presented);
    Ok((Box::new(stream), expiry))
}

/// Trusts what the libraries of the worker trust.
async fn handshake(
    host: &str,
    stream: Box<dyn Stream>,
) -> Result<TlsStream<Box<dyn Stream>>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(NO_AUTHORITY.to_owned());
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the host is not a valid name")?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| tls::explain_io(&error))
}
