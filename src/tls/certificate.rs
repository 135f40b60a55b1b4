//! Why rustls refuses a certificate, and what to do about it.

use rustls::{CertificateError, pki_types::ServerName};
use webpki::Error as PathError;

/// Explains why a server's certificate is refused. Begins with "its certificate".
///
/// rustls 0.23 passes on what it has no error of its own for as webpki's error.
pub(super) fn explain(error: &CertificateError) -> &'static str {
    #[allow(deprecated, reason = "older rustls reports these without their context")]
    match error {
        CertificateError::UnknownIssuer => {
            "its certificate comes from an authority that is not trusted here, or the server presents it \
             without its intermediate certificates: name a file with that authority's certificate in \
             SSL_CERT_FILE, or add it to the system's; configure the server with the full chain"
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate has no subjectAltName, and the common name is not read: issue it again with \
             the URL's host as subjectAltName (openssl: -addext subjectAltName=DNS:host)"
        }
        CertificateError::NotValidForNameContext {
            expected: ServerName::IpAddress(_),
            presented,
        } if !presented.iter().any(|name| name.starts_with("IpAddress")) => {
            "its certificate is for another name: it has DNS names only, and the URL has an IP address. Use \
             a name in the URL, or issue the certificate again with the address as subjectAltName (openssl: \
             -addext subjectAltName=IP:address)"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name: use a host in the URL that the certificate names"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate, or an intermediate certificate of its chain, has expired: renew it"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate, or an intermediate certificate of its chain, is not valid yet: check this \
             machine's clock"
        }
        CertificateError::Revoked => "its certificate has been revoked: issue another one",
        CertificateError::BadSignature => {
            "its certificate, or the proof that the server holds its key, has a signature that cannot be \
             verified: either a key is RSA of less than 2048 bits, or the trusted authority was created \
             again under its old name (put its present certificate into SSL_CERT_FILE)"
        }
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate, or an intermediate certificate of its chain, is signed with an algorithm that \
             is not accepted, such as SHA-1: issue it again with SHA-256 and ECDSA (P-256 or P-384), \
             Ed25519, or RSA of at least 2048 bits"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            WRONG_PURPOSE
        }
        // rustls-platform-verifier 0.7.1 replaces `InvalidPurpose` by a private type with this text (not
        // reported upstream).
        CertificateError::Other(error)
            if error.0.to_string() == "certificate had invalid extensions" =>
        {
            WRONG_PURPOSE
        }
        CertificateError::UnhandledCriticalExtension => UNKNOWN_EXTENSION,
        CertificateError::BadEncoding => MALFORMED,
        CertificateError::Other(error) => {
            error.0.downcast_ref().map_or("its certificate is invalid", explain_path)
        }
        _ => "its certificate is invalid",
    }
}

const WRONG_PURPOSE: &str = "its certificate is not for servers, a client certificate for example: issue one with the extended key \
     usage serverAuth";
const UNKNOWN_EXTENSION: &str = "its certificate, or an intermediate certificate of its chain, has a critical extension that rustls \
     does not know: issue it again without that extension, or with a non-critical one";
const MALFORMED: &str =
    "its certificate, or an intermediate certificate of its chain, is malformed: issue it again";

fn explain_path(error: &PathError) -> &'static str {
    match error {
        PathError::CaUsedAsEndEntity => {
            "its certificate is that of an authority (CA:TRUE, the default of `openssl req -x509`), which \
             rustls does not accept as a server's own: issue it again with `-addext \
             basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:host`, or issue one with an \
             authority of your own"
        }
        PathError::EndEntityUsedAsCa => {
            "its certificate was issued with a certificate that is not an authority's (CA:FALSE): issue it \
             with an authority (basicConstraints=critical,CA:TRUE)"
        }
        PathError::UnsupportedCertVersion => {
            "its certificate, or another of its chain, is of X.509 version 1, which has no \
             subjectAltName: issue it again as version 3 (openssl x509 -req: give it extensions with \
             -extfile)"
        }
        PathError::UnsupportedCriticalExtension => UNKNOWN_EXTENSION,
        PathError::NameConstraintViolation => {
            "its certificate has a name that its authority may not issue (nameConstraints): issue it with \
             another authority"
        }
        PathError::PathLenConstraintViolated => {
            "its certificate has more intermediate certificates above it than its authority permits \
             (pathlen): issue it with an authority higher up"
        }
        PathError::EmptyEkuExtension => {
            "its certificate has an extended key usage without a purpose: issue it again with serverAuth"
        }
        PathError::InvalidSerialNumber => {
            "its certificate has an invalid serial number (negative, or of more than 20 bytes): issue it \
             again"
        }
        PathError::SignatureAlgorithmMismatch
        | PathError::MalformedExtensions
        | PathError::MalformedDnsIdentifier
        | PathError::MalformedNameConstraint
        | PathError::ExtensionValueInvalid
        | PathError::InvalidNetworkMaskConstraint => MALFORMED,
        PathError::MaximumPathDepthExceeded
        | PathError::MaximumPathBuildCallsExceeded
        | PathError::MaximumSignatureChecksExceeded
        | PathError::MaximumNameConstraintComparisonsExceeded => {
            "its certificate has a chain that is too long: let the server present only the certificates \
             between its own and its authority's"
        }
        _ => "its certificate is invalid",
    }
}
