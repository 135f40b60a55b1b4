//! The client certificate for RabbitMQ, and its key.

use std::{fmt, path::Path};

use lapin::tcp::OwnedIdentity;
use rustls::{
    Error as TlsError, InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    sign::CertifiedKey,
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    secret_file::read_secret_file,
    setting::{ParseResult, ensure},
    watched::{FileError, NamedFile, Watched},
};

const NOT_A_CERTIFICATE: &str = "is not a certificate in PEM: its first line must be `-----BEGIN CERTIFICATE-----` (from DER: \
     `openssl x509 -inform der`; from PKCS #12: `openssl pkcs12 -nokeys`)";
const NOT_A_KEY: &str = "is not a private key in PEM: its first line must be `-----BEGIN PRIVATE KEY-----`, or the same \
     with RSA or EC (from DER: `openssl pkey -inform der`; from PKCS #12: `openssl pkcs12 -nocerts -nodes`)";
const ENCRYPTED: &str =
    "is encrypted with a passphrase: decrypt it (`openssl pkey -in FILE -out FILE.pem`)";
const OTHER_KEY: &str = "is the key of another certificate: give the key that the certificate in \
     HANDOFF_AMQP_CERT_FILE was issued for, with its own certificate first in that file";
const UNUSABLE_CERTIFICATE: &str = "is a certificate that cannot be parsed: issue it again";
const UNUSABLE_KEY: &str = "is a key that cannot be used: it must be ECDSA (P-256, P-384 or P-521), Ed25519, or \
     RSA of at least 2048 bits";
const PATH: &str = "; give the path of a PEM file that the worker can read";

/// The certificate that the worker presents to RabbitMQ, with its chain, and the key.
pub struct ClientIdentity {
    pem: SecretString,
    key: SecretString,
    chain: Vec<CertificateDer<'static>>,
}

impl ClientIdentity {
    /// Reads both files, and follows them. The errors are variables and what is wrong with their files.
    pub(super) fn watch(
        files: [NamedFile; 2],
    ) -> Result<Watched<Option<Self>>, Vec<(String, String)>> {
        let invalid = |why| format!("the file's content {why}");
        let [certificate, key] = &files;
        let chain = read_pem(&certificate.path)
            .and_then(|pem| parse_chain(&pem).map(|_| pem).map_err(invalid));
        let private_key =
            read_pem(&key.path).and_then(|pem| parse_key(&pem).map(|_| pem).map_err(invalid));
        let contents = match (chain, private_key) {
            (Ok(chain), Ok(private_key)) => vec![chain, private_key],
            (chain, private_key) => {
                let errors = [(certificate, chain.err()), (key, private_key.err())];
                let named =
                    |(file, why): (&NamedFile, Option<_>)| Some((file.variable.clone(), why?));
                return Err(errors.into_iter().filter_map(named).collect());
            }
        };
        let identity = parse(&contents).map_err(|(n, why)| {
            let variable = files.get(n).map(|file| file.variable.clone());
            vec![(variable.unwrap_or_default(), invalid(why))]
        })?;
        let parse = |contents: &[SecretString]| parse(contents).map(Some);
        Ok(Watched::from_files(Some(identity), contents, files.into(), Box::new(parse)))
    }

    /// The certificate and those of the authorities above it, as the worker presents them.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, PemError> {
        PrivateKeyDer::from_pem_slice(self.key.expose_secret().as_bytes())
    }

    /// The same for lapin. Its name aside, this takes PKCS #1 and SEC 1 keys, too.
    pub(crate) fn to_lapin(&self) -> OwnedIdentity {
        let bytes = |text: &SecretString| text.expose_secret().as_bytes().to_vec();
        OwnedIdentity::PKCS8 { pem: bytes(&self.pem), key: bytes(&self.key) }
    }
}

// The key must not reach a log.
impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity")
    }
}

fn read_pem(path: &Path) -> Result<SecretString, String> {
    read_secret_file(path).map(SecretString::from).map_err(|why| why + PATH)
}

fn parse_chain(pem: &SecretString) -> ParseResult<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem.expose_secret().as_bytes());
    let chain: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|_| NOT_A_CERTIFICATE)?;
    ensure(!chain.is_empty(), NOT_A_CERTIFICATE)?;
    Ok(chain)
}

fn parse_key(pem: &SecretString) -> ParseResult<PrivateKeyDer<'static>> {
    let pem = pem.expose_secret();
    let why = if pem.contains("ENCRYPTED") { ENCRYPTED } else { NOT_A_KEY };
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| why)
}

/// Parses a certificate and its key.
fn parse(contents: &[SecretString]) -> Result<ClientIdentity, FileError> {
    const CERTIFICATE: usize = 0;
    const KEY: usize = 1;
    let [pem, key] = contents else { return Err((CERTIFICATE, NOT_A_CERTIFICATE)) };
    let chain = parse_chain(pem).map_err(|why| (CERTIFICATE, why))?;
    let private_key = parse_key(key).map_err(|why| (KEY, why))?;
    let identity = ClientIdentity { pem: pem.clone(), key: key.clone(), chain };
    let chain = identity.chain.clone();
    match CertifiedKey::from_der(chain, private_key, &aws_lc_rs::default_provider()) {
        Ok(_) => Ok(identity),
        Err(TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err((KEY, OTHER_KEY)),
        Err(TlsError::InvalidCertificate(_)) => Err((CERTIFICATE, UNUSABLE_CERTIFICATE)),
        Err(_) => Err((KEY, UNUSABLE_KEY)),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn issue() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["worker".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn error(certificate: &str, key: &str) -> FileError {
        parse(&[certificate.into(), key.into()]).map(|_| ()).unwrap_err()
    }

    #[test]
    fn pkcs8_pkcs1_and_sec1_keys_are_accepted() {
        let (certificate, key) = issue();
        let sec1 = include_str!("../../tests/it/support/certificates/client_sec1.pem");
        let pkcs1 = include_str!("../../tests/it/support/certificates/client_pkcs1.pem");
        for (certificate, key) in [(&*certificate, &*key), (sec1, sec1), (pkcs1, pkcs1)] {
            let identity = parse(&[certificate.into(), key.into()]).unwrap();
            assert_eq!(identity.chain().len(), 1);
        }
    }

    #[test]
    fn mistakes_are_named_with_the_file() {
        let ((certificate, key), (other, _)) = (issue(), issue());
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let damaged = certificate.replacen("MII", "AAA", 1);
        for (certificate, key, expected) in [
            ("text", &*key, (0, NOT_A_CERTIFICATE)),
            (&key, &key, (0, NOT_A_CERTIFICATE)),
            (&certificate[..certificate.len() / 2], &key, (0, NOT_A_CERTIFICATE)),
            (&damaged, &key, (0, UNUSABLE_CERTIFICATE)),
            (&certificate, "text", (1, NOT_A_KEY)),
            (&certificate, &key[..key.len() / 2], (1, NOT_A_KEY)),
            (&certificate, &certificate, (1, NOT_A_KEY)),
            (&certificate, &encrypted, (1, ENCRYPTED)),
            (&other, &key, (1, OTHER_KEY)),
        ] {
            assert_eq!(error(certificate, key), expected);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let (certificate, key) = issue();
        let identity = parse(&[certificate.into(), key.into()]).unwrap();
        assert_eq!(format!("{identity:?}"), "ClientIdentity");
    }
}
