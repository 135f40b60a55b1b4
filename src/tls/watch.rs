//! A TLS connection that looks at the certificates it is shown.
//!
//! No certificate is taken apart here. Whoever checks them is asked what it would say at a later time:
//! where it would say that one has ended, it says when.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::NO_AUTHORITY;

/// Times to ask about, from now. The nearest counts: of several certificates one may end before the
/// server's own does.
const LATER: [Duration; 3] = [
    Duration::from_secs(14 * 24 * 60 * 60),
    Duration::from_secs(366 * 24 * 60 * 60),
    Duration::from_secs(7_900 * 366 * 24 * 60 * 60),
];

/// Connects as strictly as everybody else here, and keeps in mind when certificates end.
pub(crate) struct Watch {
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    ends: Mutex<Option<SystemTime>>,
}

impl Watch {
    /// Reads whom to trust, as the libraries that make the real connections do.
    pub(crate) fn new() -> Result<Self, &'static str> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|_| NO_AUTHORITY)?;
        let verifier = Arc::new(Verifier { inner, ends: Mutex::default() });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| "TLS cannot be set up")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// Makes a connection.
    pub(crate) async fn connect(
        &self,
        host: &str,
        tcp: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, tcp).await
    }

    /// When the first of the certificates ends that were shown last.
    pub(crate) fn ends(&self) -> Option<SystemTime> {
        *self.verifier.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let at = |time| {
            let inner = &self.inner;
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time)
        };
        let verified = at(now)?;
        let end = LATER.iter().find_map(|later| {
            let then = Duration::from_secs(now.as_secs()) + *later;
            match at(UnixTime::since_unix_epoch(then)) {
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                    not_after,
                    ..
                })) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs())),
                _ => None,
            }
        });
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = end;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
