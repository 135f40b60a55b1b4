//! What a server presents, kept for the report of a handshake that failed.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use time::OffsetDateTime;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
};

use crate::message::format_date_time;

/// Verifies certificates as rustls does, and keeps them.
#[derive(Debug)]
pub(super) struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    presented: Mutex<Vec<CertificateDer<'static>>>,
}

impl Witness {
    pub(super) fn new(verifier: Arc<WebPkiServerVerifier>) -> Self {
        Self { verifier, presented: Mutex::default() }
    }

    /// Describes the certificates that the server presented; `None` if there were none yet.
    pub(super) fn describe(&self) -> Option<String> {
        describe(&self.presented.lock())
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = [end_entity].into_iter().chain(intermediates);
        *self.presented.lock() = presented.map(|der| der.clone().into_owned()).collect();
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn describe(presented: &[CertificateDer<'_>]) -> Option<String> {
    let (server, others) = presented.split_first()?;
    let mut text = describe_one(server)?;
    if others.is_empty() {
        text += "; no further certificates";
    }
    for (n, other) in others.iter().enumerate() {
        let other = describe_one(other).unwrap_or_else(|| "unreadable".to_owned());
        text += &format!("; certificate {}: {other}", n + 2);
    }
    Some(text)
}

fn describe_one(der: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject().to_string();
    let issuer = certificate.issuer().to_string();
    let issued = if subject == issuer { "itself".to_owned() } else { format!("`{issuer}`") };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<_> =
        names.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
    let names = if names.is_empty() { "no names".to_owned() } else { names.join(", ") };
    let date = |date: OffsetDateTime| format_date_time(date.into());
    let validity = certificate.validity();
    let key = match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!(", RSA key of {} bits", key.key_size()),
        _ => String::new(),
    };
    Some(format!(
        "`{subject}` issued by {issued}, for {names}, valid from {} to {}{key}",
        date(validity.not_before.to_datetime()),
        date(validity.not_after.to_datetime()),
    ))
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|ip| std::net::IpAddr::from(ip).to_string());
            let v6 = <[u8; 16]>::try_from(*bytes).map(|ip| std::net::IpAddr::from(ip).to_string());
            v4.or(v6).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
    };

    use super::*;

    #[test]
    fn chain_is_described_with_names_and_dates() {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap();
        let names = vec!["a.example".to_owned(), "::1".to_owned(), "10.0.0.1".to_owned()];
        let mut server = CertificateParams::new(names).unwrap();
        server.distinguished_name.push(DnType::CommonName, "server");
        (server.not_before, server.not_after) =
            (date_time_ymd(2020, 1, 2), date_time_ymd(2020, 2, 3));
        let issuer = Issuer::new(authority, key);
        let server = server.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let server: CertificateDer<'_> = server.into();
        let text = describe(&[server.clone(), root.into()]).unwrap();
        for words in [
            "`CN=server` issued by `CN=authority`, for a.example, ::1, 10.0.0.1, valid from 2020-01-02",
            "to 2020-02-03",
            "; certificate 2: `CN=authority` issued by itself, for no names",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert!(describe(&[server]).unwrap().ends_with("; no further certificates"));
        assert_eq!(describe(&[]), None);
    }
}
