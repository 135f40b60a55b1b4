//! A network that can be broken: a TCP proxy between the worker and a server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What becomes of bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    Passes,
    /// They wait until they may pass again.
    Waits,
    /// They are lost, and with them every connection that was there: its ends hear nothing of each
    /// other any more, not even that one is gone. New ones go the same way until bytes pass again.
    Vanishes,
}

/// A way to a server. Closed when it is dropped.
pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    requests: watch::Sender<Flow>,
    replies: watch::Sender<Flow>,
    cuts: watch::Sender<usize>,
    sent: Mutex<Vec<u8>>,
    rewrite: Mutex<Option<(&'static [u8], &'static [u8])>>,
}

impl Proxy {
    /// A way to the server that a URL names.
    pub async fn to(url: &str) -> Self {
        let url = url::Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: watch::Sender::new(Flow::Passes),
            replies: watch::Sender::new(Flow::Passes),
            cuts: watch::Sender::new(0),
            sent: Mutex::default(),
            rewrite: Mutex::default(),
        });
        let listening = tokio::spawn(listen(listener, server, Arc::clone(&shared)));
        Self { addr, shared, listening }
    }

    /// The same URL, by this way.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.addr.port())).unwrap();
        url.to_string()
    }

    /// What the client says waits, or passes.
    pub fn requests(&self, flow: Flow) {
        self.shared.requests.send_replace(flow);
    }

    /// What the server says waits, or passes.
    pub fn replies(&self, flow: Flow) {
        self.shared.replies.send_replace(flow);
    }

    /// What either side says waits, vanishes, or passes: a network that is gone without telling
    /// anybody.
    pub fn both(&self, flow: Flow) {
        self.shared.requests.send_replace(flow);
        self.shared.replies.send_replace(flow);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on the client's bytes reach the server with some replaced by as many others: what no
    /// honest client would say.
    pub fn rewrite(&self, from: &'static [u8], to: &'static [u8]) {
        assert_eq!(from.len(), to.len());
        *self.shared.rewrite.lock().unwrap() = Some((from, to));
    }

    /// From now on they reach it as they are.
    pub fn rewrite_nothing(&self) {
        *self.shared.rewrite.lock().unwrap() = None;
    }

    /// Everything the client has sent since this was asked last.
    pub fn take_sent(&self) -> Vec<u8> {
        std::mem::take(&mut *self.shared.sent.lock().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, server: String, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        // A server that is down is a connection that is closed at once.
        let Ok(server) = TcpStream::connect(&server).await else { continue };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let shared = Arc::clone(&shared);
        let mut cuts = shared.cuts.subscribe();
        connections.spawn(async move {
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // When one side ends, so does the other.
            tokio::select! {
                // First: what waits does not pass on the way out.
                biased;
                _ = cuts.changed() => {}
                () = carry(from_client, to_server, shared.requests.subscribe(), Some(&shared)) => {}
                () = carry(from_server, to_client, shared.replies.subscribe(), None) => {}
            }
        });
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    record: Option<&Shared>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or_default(),
            () = async { drop(flow.wait_for(|flow| *flow == Flow::Vanishes).await) } => break,
        };
        if read == 0 {
            return;
        }
        if let Some(shared) = record {
            shared.sent.lock().unwrap().extend_from_slice(&buffer[..read]);
            if let Some((from, to)) = *shared.rewrite.lock().unwrap() {
                for at in 0..read.saturating_sub(from.len() - 1) {
                    if buffer[at..].starts_with(from) {
                        buffer[at..at + to.len()].copy_from_slice(to);
                    }
                }
            }
        }
        let flow = flow.wait_for(|flow| *flow != Flow::Waits).await.map(|flow| *flow);
        match flow {
            Ok(Flow::Vanishes) => break,
            Ok(_) if to.write_all(&buffer[..read]).await.is_ok() => {}
            _ => return,
        }
    }
    // Both sides stay open, and nothing is read: to the other end it is as if nobody were there.
    std::future::pending().await
}
