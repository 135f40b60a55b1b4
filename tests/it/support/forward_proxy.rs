//! Proxies that a client asks for a connection: HTTP CONNECT, the same over TLS, and SOCKS5.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::tls::{Identity, acceptor};

/// What a proxy speaks to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    Http,
    Https,
    Socks5,
}

/// What it does with a client that has the right credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyAnswer {
    /// Connects it, to this machine whatever the host.
    Connect,
    /// Refuses it: a status of HTTP, or a reply of SOCKS5.
    Refuse(u16),
    /// Accepts the connection and answers nothing.
    Silent,
    /// Closes the connection once it has read something.
    Close,
}

/// A proxy. Stops when it is dropped.
pub struct ForwardProxy {
    pub port: u16,
    targets: Arc<Mutex<Vec<String>>>,
    listening: JoinHandle<()>,
}

#[derive(Clone)]
struct Behaviour {
    kind: ProxyKind,
    answer: ProxyAnswer,
    credentials: Option<(&'static str, &'static str)>,
    targets: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    /// Starts a proxy; `identity` is for one over TLS.
    pub async fn start(
        kind: ProxyKind,
        answer: ProxyAnswer,
        credentials: Option<(&'static str, &'static str)>,
        identity: &Identity,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let targets = Arc::default();
        let behaviour = Behaviour { kind, answer, credentials, targets: Arc::clone(&targets) };
        let acceptor = acceptor(identity);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (behaviour, acceptor) = (behaviour.clone(), acceptor.clone());
                connections.spawn(async move {
                    // An error means that the client gave up.
                    let _ = serve(client, &behaviour, &acceptor).await;
                });
            }
        });
        Self { port, targets, listening }
    }

    /// The hosts and ports that clients asked for, in order.
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn serve(client: TcpStream, behaviour: &Behaviour, acceptor: &TlsAcceptor) -> io::Result<()> {
    match behaviour.kind {
        ProxyKind::Http => http(client, behaviour).await,
        ProxyKind::Https => http(acceptor.accept(client).await?, behaviour).await,
        ProxyKind::Socks5 => socks5(client, behaviour).await,
    }
}

async fn http(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    behaviour: &Behaviour,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
        if behaviour.answer == ProxyAnswer::Close {
            return Ok(());
        }
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.expect("a CONNECT request").to_owned();
    if let Some((user, password)) = behaviour.credentials {
        let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let given = head.lines().filter_map(|line| line.split_once(": "));
        let mut given = given.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"));
        if given.next().is_none_or(|(_, value)| value != format!("Basic {pair}")) {
            let refusal =
                b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
            return client.write_all(refusal).await;
        }
    }
    match behaviour.answer {
        ProxyAnswer::Refuse(status) => {
            let refusal = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            client.write_all(refusal.as_bytes()).await
        }
        ProxyAnswer::Silent => std::future::pending().await,
        ProxyAnswer::Close => Ok(()),
        ProxyAnswer::Connect => {
            let mut server = connect(&target, behaviour).await?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        }
    }
}

/// RFC 1928 and RFC 1929.
async fn socks5(mut client: TcpStream, behaviour: &Behaviour) -> io::Result<()> {
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting).await?;
    match behaviour.answer {
        ProxyAnswer::Silent => return std::future::pending().await,
        ProxyAnswer::Close => return Ok(()),
        _ => {}
    }
    if greeting[0] != 5 {
        return client.write_all(b"what?").await;
    }
    let mut methods = vec![0; usize::from(greeting[1])];
    client.read_exact(&mut methods).await?;
    let method = if behaviour.credentials.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        return client.write_all(&[5, 0xFF]).await;
    }
    client.write_all(&[5, method]).await?;
    if let Some((user, password)) = behaviour.credentials {
        assert_eq!(client.read_u8().await?, 1);
        let given = [string(&mut client).await?, string(&mut client).await?];
        let is_right = given == [user, password];
        client.write_all(&[1, u8::from(!is_right)]).await?;
        if !is_right {
            return Ok(());
        }
    }
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    assert_eq!(request[..3], [5, 1, 0], "a CONNECT request");
    let host = match request[3] {
        1 => Ipv4Addr::from_bits(client.read_u32().await?).to_string(),
        3 => string(&mut client).await?,
        4 => format!("[{}]", Ipv6Addr::from_bits(client.read_u128().await?)),
        other => panic!("address type {other}"),
    };
    let target = format!("{host}:{}", client.read_u16().await?);
    let reply = |code| [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
    if let ProxyAnswer::Refuse(code) = behaviour.answer {
        return client.write_all(&reply(u8::try_from(code).unwrap())).await;
    }
    let mut server = connect(&target, behaviour).await?;
    client.write_all(&reply(0)).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// A length byte, and as many bytes of text.
async fn string(client: &mut TcpStream) -> io::Result<String> {
    let mut text = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut text).await?;
    Ok(String::from_utf8(text).unwrap())
}

async fn connect(target: &str, behaviour: &Behaviour) -> io::Result<TcpStream> {
    behaviour.targets.lock().unwrap().push(target.to_owned());
    let (_, port) = target.rsplit_once(':').unwrap();
    TcpStream::connect(format!("127.0.0.1:{port}")).await
}
