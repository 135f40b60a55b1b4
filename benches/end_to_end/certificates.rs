//! The certificates of `--tls`: an authority, and the chain of a server that it vouches for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::Result;

/// A folder with the certificates. Removed when it is dropped.
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes a chain as long as those of public authorities, since a client keeps the chain of
    /// each of its connections.
    pub(crate) fn make() -> Result<Self> {
        let root = authority("handoff benches")?;
        let root_certificate = root.params.self_signed(&root.key)?;
        let root = Issuer::new(root.params, root.key);
        let intermediate = authority("handoff benches: intermediate")?;
        let intermediate_certificate = intermediate.params.signed_by(&intermediate.key, &root)?;
        let intermediate = Issuer::new(intermediate.params, intermediate.key);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["localhost".to_owned()])?;
        let certificate = certificate.signed_by(&key, &intermediate)?;

        let name = format!("handoff-bench-{}-certificates", std::process::id());
        let certificates = Self { folder: std::env::temp_dir().join(name) };
        fs::create_dir(&certificates.folder)?;
        fs::write(certificates.authority(), root_certificate.pem())?;
        let chain = format!("{}{}", certificate.pem(), intermediate_certificate.pem());
        fs::write(certificates.folder.join(CHAIN), chain)?;
        fs::write(certificates.folder.join(KEY), key.serialize_pem())?;
        Ok(certificates)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The certificate that clients must trust, as a PEM file.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }
}

const CHAIN: &str = "chain.pem";
const KEY: &str = "key.pem";

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

fn authority(name: &str) -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(Authority { params, key: KeyPair::generate()? })
}

/// Reads the server's chain and key from a folder of [`Certificates`].
pub(crate) fn read(
    folder: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(folder.join(CHAIN))?;
    let chain = chain.collect::<std::result::Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join(KEY))?))
}
