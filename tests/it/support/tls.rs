//! A private certificate authority, and TLS in front of servers that speak none.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        sign::{CertifiedKey, SingleCertAndKey},
    },
};

use super::{node::Node, temp_file::TempFile};

/// A private certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
    /// Holds its certificate, and nothing else.
    dir: PathBuf,
}

/// A certificate and its key, as DER.
pub struct Identity {
    pub certificate: Vec<u8>,
    /// The intermediate certificates that the server presents with it.
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "handoff tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let name = format!("handoff-authority-{}", uuid::Uuid::new_v4().simple());
        let authority = Self {
            dir: std::env::temp_dir().join(name),
            issuer: Issuer::new(params, key),
            certificate: certificate.der().to_vec(),
        };
        fs::create_dir(&authority.dir).unwrap();
        fs::write(authority.certificate_file(), certificate.pem()).unwrap();
        authority
    }

    /// Its certificate as a value of `SSL_CERT_FILE`.
    pub fn certificate_file(&self) -> String {
        self.dir.join("authority.pem").to_str().unwrap().to_owned()
    }

    /// The same as a value of `SSL_CERT_DIR`.
    pub fn certificate_dir(&self) -> String {
        self.dir.to_str().unwrap().to_owned()
    }

    /// Issues a certificate for these names and addresses.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.issue_valid_for(names, Duration::from_secs(1_000 * 24 * 60 * 60))
    }

    /// Issues one that is valid for `duration`.
    pub fn issue_valid_for(&self, names: &[&str], duration: Duration) -> Identity {
        let not_after = SystemTime::now() + duration;
        self.issue_with(names, |params| params.not_after = not_after.into())
    }

    /// Issues one for a client whose subject is `CN=<name>`.
    pub fn issue_client(&self, name: &str) -> Identity {
        self.issue_with(&[], |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// Issues one with changed parameters.
    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: certificate.der().to_vec(),
            chain: vec![],
            key: key.serialize_der(),
        }
    }

    /// Issues one by an intermediate authority whose certificate is valid until `not_after`.
    pub fn issue_by_intermediate(&self, names: &[&str], not_after: SystemTime) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "handoff tests: intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = not_after.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        let intermediate = Self {
            issuer: Issuer::new(params, key),
            certificate: certificate.clone(),
            dir: PathBuf::new(),
        };
        Identity { chain: vec![certificate], ..intermediate.issue(names) }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Identity {
    /// The certificate that `openssl req -x509` makes by default: its own issuer, and CA:TRUE.
    pub fn self_signed_authority(names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { certificate, chain: vec![], key: key.serialize_der() }
    }

    /// One of `support/certificates`, by the name of its file. All have the same key.
    pub fn stored(pem: &str) -> Self {
        let key = include_bytes!("certificates/key.pem");
        let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(key).unwrap() else {
            panic!("the key is PKCS #8");
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        Self { certificate, chain: vec![], key: key.secret_pkcs8_der().to_vec() }
    }

    /// As PEM: the certificate and the key.
    pub fn pem(&self) -> (TempFile, TempFile) {
        let (certificate, key) = self.pem_text();
        (TempFile::new(&certificate), TempFile::new(&key))
    }

    /// As the text of PEM files.
    pub fn pem_text(&self) -> (String, String) {
        (pem("CERTIFICATE", &self.certificate), pem("PRIVATE KEY", &self.key))
    }
}

fn pem(tag: &str, der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", BASE64_STANDARD.encode(der))
}

/// Accepts TLS connections as this identity.
pub fn acceptor(identity: &Identity) -> TlsAcceptor {
    acceptor_for(identity, &[])
}

/// The same, and speaks one of these protocols.
pub fn acceptor_for(identity: &Identity, protocols: &[&str]) -> TlsAcceptor {
    let chain = [&identity.certificate].into_iter().chain(&identity.chain);
    let chain = chain.map(|certificate| CertificateDer::from(certificate.clone())).collect();
    let key = PrivateKeyDer::try_from(identity.key.clone()).unwrap();
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    // Unlike `with_single_cert`, this takes certificates that rustls itself would refuse.
    let identity = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().into()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Terminates TLS in front of a server that speaks none. Stops when it is dropped.
pub struct TlsProxy {
    addr: SocketAddr,
    listening: JoinHandle<()>,
}

impl TlsProxy {
    /// Starts one in front of the server of a URL.
    pub async fn to(url: &str, identity: &Identity) -> Self {
        let url = url::Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let acceptor = acceptor(identity);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                let server = server.clone();
                connections.spawn(async move {
                    // Fails where the client does not trust the certificate.
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    let _ = client.get_ref().0.set_nodelay(true);
                    let _ = server.set_nodelay(true);
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { addr, listening }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The same URL with TLS at this port: `amqps`, `rediss` or `https`.
pub fn tls_url(url: &str, port: u16) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    let mut url = url::Url::parse(&format!("{scheme}s://{rest}")).unwrap();
    url.set_port(Some(port)).unwrap();
    url.to_string()
}

/// A port that nothing uses.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Has a RabbitMQ also listen for TLS, and require certificates of the clients' authority if there is one.
/// Returns the port.
pub async fn listen_for_amqps(
    node: &Node,
    identity: &Identity,
    clients: Option<&Authority>,
) -> u16 {
    let port = free_port();
    let bytes =
        |der: &[u8]| format!("<<{}>>", der.iter().map(u8::to_string).collect::<Vec<_>>().join(","));
    let verify = clients.map(|authority| {
        let certificate = bytes(&authority.certificate);
        format!(", {{cacerts, [{certificate}]}}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}")
    });
    let listen = format!(
        "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}, inet}}, \
         [{{cert, {}}}, {{key, {{'PrivateKeyInfo', {}}}}}{}], 1).",
        bytes(&identity.certificate),
        bytes(&identity.key),
        verify.unwrap_or_default(),
    );
    node.ctl(&["eval", &listen]).await;
    port
}
