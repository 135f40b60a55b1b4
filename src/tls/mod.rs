//! Explains TLS errors: what is wrong, and how to fix it.
//!
//! lapin, redis and reqwest each report an untrusted certificate in their own way. All of them use
//! rustls, so its error is searched for in the chain of sources. All of them trust the system's
//! certificate authorities, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR` instead.

mod authorities;
mod certificate;

use std::{error::Error, io};

use rustls::{AlertDescription, Error as TlsError, PeerIncompatible};

pub(crate) use self::authorities::problems as authority_problems;
use crate::error_chain;

/// There is no certificate authority, so no certificate can be trusted.
pub(crate) const NO_AUTHORITY: &str = "no certificate authority is known: install the system's \
     (ca-certificates), or name a file with the right one in SSL_CERT_FILE";

/// Explains the TLS error in a chain of sources, if there is one. Quotes nothing of the error.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> Option<&'static str> {
    error_chain::find(error).map(explain_tls)
}

/// Explains why a connection was not made or broke: by its TLS error, or else by its kind.
pub(crate) fn explain_io(error: &io::Error) -> String {
    if let Some(explanation) = explain(error) {
        return explanation.to_owned();
    }
    if error_chain::is_unknown_host(error) {
        return "the host was not found".to_owned();
    }
    error.kind().to_string()
}

fn explain_tls(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(why) => certificate::explain(why),
        TlsError::NoCertificatesPresented => {
            "the server presents no certificate: configure it with one"
        }
        TlsError::InvalidMessage(_) => "the server does not speak TLS: check the port",
        TlsError::AlertReceived(AlertDescription::ProtocolVersion)
        | TlsError::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => {
            "the server speaks neither TLS 1.2 nor TLS 1.3, only older versions, which are insecure: update \
             it, or configure it for TLS 1.2 or later"
        }
        TlsError::AlertReceived(
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity,
        )
        | TlsError::PeerIncompatible(_) => {
            "the server has no TLS cipher suite or kind of key in common with rustls (TLS 1.2: ECDHE with \
             AES-GCM or ChaCha20; keys: ECDSA with P-256 or P-384, Ed25519, RSA), or it requires a client \
             certificate: check its TLS settings"
        }
        TlsError::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the server has no certificate for the host in the URL: use a host that it knows"
        }
        TlsError::AlertReceived(AlertDescription::InternalError) => {
            "the server failed in the TLS handshake: see its log, and check its certificate and key"
        }
        TlsError::AlertReceived(alert) => explain_alert(*alert),
        // rustls-platform-verifier 0.7, which reqwest uses, reports an empty store this way.
        TlsError::General(_) => NO_AUTHORITY,
        _ => "the TLS handshake failed",
    }
}

/// Explains the other alerts, which are about the client certificate.
fn explain_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired => {
            "the server requires a client certificate, which handoff presents to RabbitMQ alone: set \
             HANDOFF_AMQP_CERT_FILE and HANDOFF_AMQP_KEY_FILE"
        }
        AlertDescription::UnknownCA => {
            "the server refused the client certificate: it does not know its authority. Add that authority \
             to those that the server trusts (RabbitMQ: ssl_options.cacertfile), and put intermediate \
             certificates behind the client's own into HANDOFF_AMQP_CERT_FILE"
        }
        AlertDescription::CertificateExpired => {
            "the server refused the client certificate: it has expired, or is not valid yet; renew it, or \
             check both clocks"
        }
        AlertDescription::CertificateRevoked => {
            "the server refused the client certificate: it has been revoked; issue another one"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => {
            "the server refused the client certificate: see the server's log; it must be for clients \
             (extended key usage clientAuth) and signed with SHA-256 or better"
        }
        _ => {
            "the server refused the TLS handshake: see its log. Does it require a client certificate?"
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use std::sync::Arc;

    use super::*;

    #[test]
    fn tls_error_is_found_at_any_depth() {
        let untrusted = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let io = || io::Error::new(io::ErrorKind::InvalidData, untrusted());
        let shared: error_chain::SharedError = Arc::new(io());
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
