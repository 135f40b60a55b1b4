//! Names with several addresses, which an end-to-end test cannot give the system's resolver everywhere.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, timeout},
};
use url::Url;

use super::{ConnectionSettings, Connections, Reuse};

/// Resolves every name to these addresses.
struct Addresses(Vec<Ipv4Addr>);

impl Resolve for Addresses {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses: Vec<_> =
            self.0.iter().map(|address| SocketAddr::from((*address, 0))).collect();
        Box::pin(std::future::ready(Ok(Box::new(addresses.into_iter()) as Addrs)))
    }
}

/// Has an address answer no attempt to connect to this port: its backlog is full.
async fn silence(address: Ipv4Addr, port: u16) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, port).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    let patience = Duration::from_millis(200);
    while let Ok(connected) = timeout(patience, TcpStream::connect((address, port))).await {
        waiting.push(connected.unwrap());
    }
    (listener, waiting)
}

async fn answer_one_call(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"{}") {
        stream.read_buf(&mut request).await.unwrap();
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
}

#[tokio::test]
async fn silent_addresses_leave_time_for_the_next_and_for_the_call() {
    let addresses: Vec<_> = (2..=4).map(|last| Ipv4Addr::new(127, 0, 0, last)).collect();
    let (good, silent) = addresses.split_last().unwrap();
    let listener = TcpListener::bind((*good, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut backlogs = Vec::new();
    for address in silent {
        backlogs.push(silence(*address, port).await);
    }
    let url = Url::parse(&format!("http://platform.test:{port}/")).unwrap();
    let limit = Duration::from_secs(3);
    let resolver = Arc::new(Addresses(addresses.clone()));
    let settings =
        ConnectionSettings { url: &url, timeout: limit, proxy: None, resolver: Some(resolver) };
    let connections = Connections::new(settings).unwrap();
    let began = Instant::now();
    let call = connections.send(connections.post(url).body("{}"), Reuse::Allowed);
    // The call limits its own time; without an attempt at the good address, the server would wait indefinitely.
    let served = timeout(limit, answer_one_call(&listener));
    let (reply, served) = tokio::join!(call, served);
    assert!(served.is_ok(), "the good address was not tried");
    assert!(reply.is_ok_and(|reply| reply.status().is_success()));
    assert!(began.elapsed() < limit / 2, "{:?}", began.elapsed());
}
