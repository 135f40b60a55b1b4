//! Explains TLS errors: what is wrong, and how to fix it.
//!
//! lapin, redis and reqwest each report an untrusted certificate in their own way. All of them use
//! rustls, so its error is searched for in the chain of sources. All of them trust the system's
//! certificate authorities, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR` instead.

use std::{error::Error, io, sync::Arc};

use rustls::{CertificateError, Error as TlsError};

/// There is no certificate authority, so no certificate can be trusted.
pub(crate) const NO_AUTHORITY: &str = "no certificate authority is known: install the system's \
     (ca-certificates), or name a file with the right one in SSL_CERT_FILE";

/// The type in which the redis crate keeps an error's source.
pub(crate) type SharedError = Arc<dyn Error + Send + Sync>;

/// Explains the TLS error in a chain of sources, if there is one. Quotes nothing of the error.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<TlsError>() {
            return Some(explain_tls(tls));
        }
        // `source` of these two types skips the error that they wrap and returns its source.
        next = if let Some(shared) = error.downcast_ref::<SharedError>() {
            Some(&**shared)
        } else if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner)
        } else {
            error.source()
        };
    }
    None
}

/// Explains why a connection was not made or broke: by its TLS error, or else by its kind.
pub(crate) fn explain_io(error: &io::Error) -> String {
    if let Some(explanation) = explain(error) {
        return explanation.to_owned();
    }
    match error.kind().to_string() {
        // `ErrorKind` has no variant for a failed name resolution.
        kind if kind == "uncategorized error" => "the host was not found".to_owned(),
        kind => kind,
    }
}

fn explain_tls(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => {
                "its certificate comes from an authority that is not trusted here: name a file with that \
                 authority's certificate in SSL_CERT_FILE, or add it to the system's"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: use a host in the URL that the certificate names"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: check this machine's clock"
            }
            _ => "its certificate is invalid",
        },
        TlsError::InvalidMessage(_) => "the server does not speak TLS: check the port",
        TlsError::AlertReceived(_) => {
            "the server refused the TLS handshake: does it require a client certificate?"
        }
        // rustls-platform-verifier 0.7, which reqwest uses, reports an empty store this way.
        TlsError::General(_) => NO_AUTHORITY,
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_error_is_found_at_any_depth() {
        let untrusted = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let io = || io::Error::new(io::ErrorKind::InvalidData, untrusted());
        let shared: SharedError = Arc::new(io());
        let errors: [&(dyn Error + 'static); 4] =
            [&untrusted(), &io(), &io::Error::other(io()), &shared];
        for error in errors {
            assert!(explain(error).is_some_and(|text| text.contains("SSL_CERT_FILE")), "{error}");
        }
        for other in [io::Error::other("secret"), io::ErrorKind::ConnectionReset.into()] {
            assert_eq!(explain(&other), None);
        }
    }
}
