//! A connection: name resolution, TCP, TLS.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{certificate::Expiry, presented::Witness};
use crate::{
    config::ClientIdentity,
    tls::{self, NO_AUTHORITY},
};

/// Never shown: the setting's parser has made the same checks.
const UNUSABLE_IDENTITY: &str = "the client certificate cannot be used";

/// A TCP or TLS connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why there is no connection.
pub(super) enum Failure {
    Network(String),
    /// The network is well, but not TLS. The text has the remedy.
    Tls(String),
}

/// Connects to a host, with or without TLS.
pub(super) async fn open(
    host: &str,
    port: u16,
    is_tls: bool,
    identity: Option<&ClientIdentity>,
) -> Result<(Box<dyn Stream>, Option<Expiry>), Failure> {
    let tcp = TcpStream::connect((host, port)).await;
    let tcp = tcp.map_err(|error| Failure::Network(tls::explain_io(&error)))?;
    secure(host, Box::new(tcp), is_tls, identity).await
}

/// Adds TLS to a connection, if wanted, and presents the client certificate.
pub(super) async fn secure(
    host: &str,
    stream: Box<dyn Stream>,
    is_tls: bool,
    identity: Option<&ClientIdentity>,
) -> Result<(Box<dyn Stream>, Option<Expiry>), Failure> {
    if !is_tls {
        return Ok((stream, None));
    }
    let stream = handshake(host, stream, identity).await.map_err(Failure::Tls)?;
    let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let expiry = Expiry::of(presented);
    Ok((Box::new(stream), expiry))
}

/// Trusts what the libraries of the worker trust. The error says what the server presents.
async fn handshake(
    host: &str,
    stream: Box<dyn Stream>,
    identity: Option<&ClientIdentity>,
) -> Result<TlsStream<Box<dyn Stream>>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build();
    let witness = Arc::new(Witness::new(verifier.map_err(|_| NO_AUTHORITY)?));
    let verifier: Arc<dyn ServerCertVerifier> = Arc::clone(&witness) as _;
    let config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
    let config = match identity {
        Some(identity) => {
            let key = identity.key().map_err(|_| UNUSABLE_IDENTITY)?;
            config.with_client_auth_cert(identity.chain().to_vec(), key)
        }
        None => Ok(config.with_no_client_auth()),
    };
    let config = config.map_err(|_| UNUSABLE_IDENTITY)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "the host is not a valid name")?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return "the server closed the connection in the TLS handshake: check that the port is one for TLS"
                .to_owned();
        }
        let why = tls::explain_io(&error);
        match witness.describe() {
            Some(presented) => format!("{why}. It presents {presented}"),
            None => why,
        }
    })
}
