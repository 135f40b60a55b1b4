//! Names with several addresses, which an end-to-end test cannot give the system's resolver everywhere; and the number
//! of HTTP/2 streams that a server permits, over minutes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use url::Url;

use super::{
    Clients, ConnectionSettings, Connections, Http2, ProtocolWatch, Reuse, Tls, TokioInstant,
};

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

/// An HTTP/2 server without TLS, which answers calls once it is released.
struct StreamServer {
    url: Url,
    /// The streams that it permits on each new connection.
    permitted: Arc<AtomicU32>,
    /// The calls that have arrived so far.
    arrived: watch::Sender<usize>,
    released: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl StreamServer {
    async fn start(permitted: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let permitted = Arc::new(AtomicU32::new(permitted));
        let (arrived, released) = (watch::Sender::new(0), watch::Sender::new(false));
        let mut tasks = JoinSet::new();
        let (streams, count, release) = (Arc::clone(&permitted), arrived.clone(), released.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut server = h2::server::Builder::new();
                server.max_concurrent_streams(streams.load(Ordering::Relaxed));
                let (count, release) = (count.clone(), release.clone());
                connections.spawn(async move {
                    let mut connection =
                        server.handshake::<_, hyper::body::Bytes>(stream).await.unwrap();
                    let mut calls = JoinSet::new();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        count.send_modify(|count| *count += 1);
                        let mut released = release.subscribe();
                        calls.spawn(async move {
                            let _ = released.wait_for(|released| *released).await;
                            let _ = respond.send_response(axum::http::Response::new(()), true);
                        });
                    }
                });
            }
        });
        Self { url: url.parse().unwrap(), permitted, arrived, released, _tasks: tasks }
    }

    async fn arrived(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let arrived = arrived.wait_for(|arrived| *arrived >= count);
        timeout(Duration::from_secs(20), arrived).await.expect("all calls arrive").unwrap();
    }
}

/// Sends `count` calls at once, which are answered once the server is released.
async fn send_calls(tls: &Arc<Tls>, server: &StreamServer, calls: &mut JoinSet<()>, count: usize) {
    let arrived = *server.arrived.borrow() + count;
    for _ in 0..count {
        let (tls, url) = (Arc::clone(tls), server.url.clone());
        calls.spawn(async move {
            let mut request = reqwest::Request::new(reqwest::Method::POST, url);
            *request.body_mut() = Some("{}".into());
            let deadline = TokioInstant::now() + Duration::from_secs(3_600);
            let reply = tls.send_over_http2(&request, deadline, Reuse::Allowed).await;
            assert!(reply.is_ok_and(|reply| reply.status().is_success()));
        });
    }
    server.arrived(arrived).await;
}

/// Has the server answer all calls, and lets a minute pass.
async fn finish(server: &StreamServer, calls: &mut JoinSet<()>) {
    server.released.send_replace(true);
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    server.released.send_replace(false);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn number_of_streams_that_a_server_permits_is_kept_for_longer_than_a_minute() {
    let server = StreamServer::start(8).await;
    let timeout = Duration::from_secs(3_600);
    let settings = ConnectionSettings { url: &server.url, timeout, proxy: None, resolver: None };
    let http2 = Http2::new(Clients::new(settings).unwrap());
    let tls = Arc::new(Tls { protocol: ProtocolWatch::new(), http1_calls: Arc::default(), http2 });
    let mut calls = JoinSet::new();
    send_calls(&tls, &server, &mut calls, 12).await;
    assert_eq!(tls.http2.connections_and_limit(), (2, 8));
    finish(&server, &mut calls).await;
    // Without that knowledge, all of them take the first connection, and four wait for a stream.
    let next: Vec<_> = (0..12).map(|_| tls.http2.start_call(Reuse::Allowed).unwrap()).collect();
    assert_eq!(tls.http2.connections_and_limit(), (2, 8));
    drop(next);

    // One call a minute tries whether the server permits more.
    send_calls(&tls, &server, &mut calls, 8).await;
    send_calls(&tls, &server, &mut calls, 1).await;
    assert_eq!(tls.http2.connections_and_limit().1, 8, "it was moved");
    finish(&server, &mut calls).await;

    server.permitted.store(20, Ordering::Relaxed);
    send_calls(&tls, &server, &mut calls, 8).await;
    for permitted in 9..=20 {
        send_calls(&tls, &server, &mut calls, 1).await;
        // The call learns that it was sent a moment after the server has it.
        let is_raised = async {
            while tls.http2.connections_and_limit().1 < permitted {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is_raised).await.expect("raised");
    }
    send_calls(&tls, &server, &mut calls, 4).await;
    assert_eq!(tls.http2.connections_and_limit(), (2, 20));
    finish(&server, &mut calls).await;
}
