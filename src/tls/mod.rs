//! What is wrong with a TLS connection, in words of our own.
//!
//! RabbitMQ, Redis and the platform are reached by three libraries, and each has its own way to say
//! that a certificate is not trusted. Beneath all of them is rustls, whose error is looked for here.
//! All three trust the same: the system's certificate authorities, or those that `SSL_CERT_FILE` and
//! `SSL_CERT_DIR` name in their place.

mod watch;

use std::{error::Error, io, sync::Arc};

use rustls::{CertificateError as Certificate, Error as Tls};

pub(crate) use self::watch::Watch;

const NO_AUTHORITY: &str = "no certificate authority is known: install the system's (ca-certificates), \
     or name a file with the right one in SSL_CERT_FILE";

/// How Redis' library holds the errors beneath its own.
pub(crate) type Shared = Arc<dyn Error + Send + Sync>;

/// What TLS has to do with an error, if anything. Says what to do; holds nothing of the error itself.
pub(crate) fn trouble(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Tls>() {
            return Some(words(tls));
        }
        // These two, asked for their source, pass over what they hold and go on to its source.
        next = if let Some(shared) = error.downcast_ref::<Shared>() {
            Some(&**shared)
        } else if let Some(within) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
        {
            Some(within)
        } else {
            error.source()
        };
    }
    None
}

/// What keeps a connection from being made, or broke it: TLS, or else the kind of error.
pub(crate) fn on_the_way(error: &io::Error) -> String {
    match (trouble(error), error.kind().to_string()) {
        (Some(trouble), _) => trouble.to_owned(),
        // Names that no resolver knows have no kind of their own.
        (None, kind) if kind == "uncategorized error" => "the host was not found".to_owned(),
        (None, kind) => kind,
    }
}

fn words(error: &Tls) -> &'static str {
    match error {
        Tls::InvalidCertificate(why) => match why {
            Certificate::UnknownIssuer => {
                "its certificate comes from an authority that is not trusted here: name a file with that \
                 authority's certificate in SSL_CERT_FILE, or add it to the system's"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "its certificate is for another name: the URL's host must be one that the certificate \
                 names"
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "its certificate has expired"
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "its certificate is not valid yet: is this machine's clock right?"
            }
            _ => "its certificate is not valid",
        },
        Tls::InvalidMessage(_) => "what answers does not speak TLS: is the port the one for TLS?",
        Tls::AlertReceived(_) => "it refused the TLS handshake: does it want a client certificate?",
        // That is how a store without certificates is told.
        Tls::General(_) => NO_AUTHORITY,
        _ => "the TLS handshake failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_found_however_deep_it_lies() {
        let untrusted = || Tls::InvalidCertificate(Certificate::UnknownIssuer);
        let io = || io::Error::new(io::ErrorKind::InvalidData, untrusted());
        let shared: Shared = Arc::new(io());
        let errors: [&(dyn Error + 'static); 4] =
            [&untrusted(), &io(), &io::Error::other(io()), &shared];
        for error in errors {
            assert!(trouble(error).is_some_and(|words| words.contains("SSL_CERT_FILE")), "{error}");
        }
        for other in [io::Error::other("secret"), io::ErrorKind::ConnectionReset.into()] {
            assert_eq!(trouble(&other), None);
        }
    }
}
