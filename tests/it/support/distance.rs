//! A network that takes its time: a TCP proxy that delays what it forwards.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{test_env::TestEnv, wait::wait_until};

/// A script has 250 ms: the rest is for a loaded machine. Loading the scripts one after another would take longer
/// than the 1.5 s that the worker has for it.
pub const ROUND_TRIP: Duration = Duration::from_millis(150);

/// A proxy to a server that is this far away. Stops when it is dropped.
pub struct Distance {
    addr: SocketAddr,
    listening: JoinHandle<()>,
}

impl Distance {
    /// Starts a proxy to the server of a URL.
    pub async fn to(url: &str, round_trip: Duration) -> Self {
        let url = url::Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { addr, listening: tokio::spawn(listen(listener, server, round_trip)) }
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The same URL, through the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.port())).unwrap();
        url.to_string()
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, server: String, round_trip: Duration) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = server.clone();
        connections.spawn(async move {
            // The handshake of TCP, which the client believes to be over.
            sleep(round_trip).await;
            let Ok(server) = TcpStream::connect(&server).await else { return };
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = carry(from_client, to_server, round_trip / 2) => {}
                () = carry(from_server, to_client, round_trip / 2) => {}
            }
        });
    }
}

/// Forwards each byte `delay` after it came, however many are under way.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            sender.send((Instant::now() + delay, buffer[..read].to_vec())).unwrap();
        }
    };
    let writing = async {
        while let Some((due, bytes)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// Asserts that two workers share sessions through Redis, and reuse them.
pub async fn expect_shared_sessions(env: &mut TestEnv) {
    let workers = [env.start_worker().await, env.start_worker().await];
    for worker in &workers {
        let is_used = async || !worker.get("/readyz").await.1.contains("degraded");
        wait_until("the worker uses Redis", is_used).await;
    }
    env.publish_requests(0..10).await;
    env.request_again(0..10).await;
    env.rabbitmq.next_events(20).await;
    env.request_again(0..10).await;
    env.expect_all_reused(10).await;
    assert_eq!(env.platform.session_calls().len(), 10);
    for worker in &workers {
        // None, unless the machine is loaded.
        println!("{} failed operations", worker.metric("handoff_cache_errors_total").await);
    }
}
