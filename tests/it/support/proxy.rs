//! A network that can be broken: a TCP proxy between the worker and a server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::{broadcast, watch},
    task::{JoinHandle, JoinSet},
};

/// The worker's AMQP connections, by the name that each sends when it logs in.
pub const CONSUMER: &str = "handoff consumer";
pub const PUBLISHER: &str = "handoff publisher";

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Passes them on.
    Forwarded,
    /// Keeps them until they are forwarded again.
    Held,
    /// Loses them, and with them every open connection: each end stays open and receives nothing
    /// more, not even a close. New connections are lost too, until bytes are forwarded again.
    Dropped,
}

/// A proxy to one server. Stops when it is dropped.
pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    requests: watch::Sender<Flow>,
    replies: watch::Sender<Flow>,
    commands: broadcast::Sender<Command>,
    sent: Mutex<Vec<u8>>,
    rewrite: Mutex<Option<(&'static [u8], &'static [u8])>>,
}

/// What happens to the open connections whose client has sent this name, or to all.
#[derive(Clone)]
struct Command {
    name: Option<&'static str>,
    action: Action,
}

#[derive(Clone)]
enum Action {
    Close,
    /// Sends the server these bytes, as if they came from the client.
    Inject(&'static [u8]),
}

/// What identifies a connection: the first bytes of its client.
#[derive(Default)]
struct Opening(Mutex<Vec<u8>>);

impl Opening {
    fn record(&self, bytes: &[u8]) {
        let mut opening = self.0.lock().unwrap();
        if opening.len() < 4096 {
            opening.extend_from_slice(bytes);
        }
    }

    fn matches(&self, name: Option<&str>) -> bool {
        let opening = self.0.lock().unwrap();
        name.is_none_or(|name| opening.windows(name.len()).any(|part| part == name.as_bytes()))
    }
}

impl Proxy {
    /// Starts a proxy to the server of a URL.
    pub async fn to(url: &str) -> Self {
        Self::at("127.0.0.1:0", url).await
    }

    /// The same at an address.
    pub async fn at(addr: &str, url: &str) -> Self {
        let url = url::Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            requests: watch::Sender::new(Flow::Forwarded),
            replies: watch::Sender::new(Flow::Forwarded),
            commands: broadcast::Sender::new(64),
            sent: Mutex::default(),
            rewrite: Mutex::default(),
        });
        let listening = tokio::spawn(listen(listener, server, Arc::clone(&shared)));
        Self { addr, shared, listening }
    }

    /// The same URL, through the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.addr.port())).unwrap();
        url.to_string()
    }

    /// Sets the flow from the client to the server.
    pub fn set_requests(&self, flow: Flow) {
        self.shared.requests.send_replace(flow);
    }

    /// Sets the flow from the server to the client.
    pub fn set_replies(&self, flow: Flow) {
        self.shared.replies.send_replace(flow);
    }

    /// Sets the flow in both directions.
    pub fn set_flow(&self, flow: Flow) {
        self.shared.requests.send_replace(flow);
        self.shared.replies.send_replace(flow);
    }

    /// Closes every open connection.
    pub fn close_connections(&self) {
        self.command(None, Action::Close);
    }

    /// Closes every open connection with this name, such as [`CONSUMER`].
    pub fn close_connections_of(&self, name: &'static str) {
        self.command(Some(name), Action::Close);
    }

    /// Has RabbitMQ close the channel that the worker consumes on: acks a delivery that it never received.
    pub fn close_consuming_channel(&self) {
        // A method frame on channel 1: `basic.ack` of delivery tag 999.
        let ack = b"\x01\0\x01\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\x03\xe7\0\xce";
        self.command(Some(CONSUMER), Action::Inject(ack));
    }

    fn command(&self, name: Option<&'static str>, action: Action) {
        // Fails if no connection is open.
        let _ = self.shared.commands.send(Command { name, action });
    }

    /// Replaces bytes that the client sends by as many others, to send the server what a correct
    /// client never would.
    pub fn rewrite_requests(&self, from: &'static [u8], to: &'static [u8]) {
        assert_eq!(from.len(), to.len());
        *self.shared.rewrite.lock().unwrap() = Some((from, to));
    }

    /// Forwards what the client sends unchanged again.
    pub fn stop_rewriting(&self) {
        *self.shared.rewrite.lock().unwrap() = None;
    }

    /// Everything the client has sent since the last call.
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
        // While the server is down, the client's connection is closed at once.
        let Ok(server) = TcpStream::connect(&server).await else { continue };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let shared = Arc::clone(&shared);
        let opening = Arc::<Opening>::default();
        let mut cuts = shared.commands.subscribe();
        connections.spawn(async move {
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // When one side closes, so does the other.
            tokio::select! {
                // Polled first, so that no held byte is forwarded once connections are closed.
                biased;
                () = closed(&mut cuts, &opening) => {}
                () = carry(from_client, to_server, shared.requests.subscribe(), Some((&shared, &opening))) => {}
                () = carry(from_server, to_client, shared.replies.subscribe(), None) => {}
            }
        });
    }
}

/// Waits until this connection must be closed.
async fn closed(commands: &mut broadcast::Receiver<Command>, opening: &Opening) {
    loop {
        let command = commands.recv().await.unwrap();
        if matches!(command.action, Action::Close) && opening.matches(command.name) {
            return;
        }
    }
}

/// Waits for bytes to inject into this connection.
async fn injected(commands: &mut broadcast::Receiver<Command>, opening: &Opening) -> &'static [u8] {
    loop {
        let command = commands.recv().await.unwrap();
        if let Action::Inject(bytes) = command.action
            && opening.matches(command.name)
        {
            return bytes;
        }
    }
}

/// `client`: these bytes come from the client.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    client: Option<(&Shared, &Opening)>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut injections = client.map(|(shared, _)| shared.commands.subscribe());
    loop {
        let injection = async {
            match (&mut injections, client) {
                (Some(commands), Some((_, opening))) => injected(commands, opening).await,
                _ => std::future::pending().await,
            }
        };
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or_default(),
            bytes = injection => {
                buffer[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            () = async { drop(flow.wait_for(|flow| *flow == Flow::Dropped).await) } => break,
        };
        if read == 0 {
            return;
        }
        if let Some((shared, opening)) = client {
            opening.record(&buffer[..read]);
            shared.sent.lock().unwrap().extend_from_slice(&buffer[..read]);
            if let Some((from, to)) = *shared.rewrite.lock().unwrap() {
                for at in 0..read.saturating_sub(from.len() - 1) {
                    if buffer[at..].starts_with(from) {
                        buffer[at..at + to.len()].copy_from_slice(to);
                    }
                }
            }
        }
        let flow = flow.wait_for(|flow| *flow != Flow::Held).await.map(|flow| *flow);
        match flow {
            Ok(Flow::Dropped) => break,
            Ok(_) if to.write_all(&buffer[..read]).await.is_ok() => {}
            _ => return,
        }
    }
    // Keeps both sockets open without reading, as if the other host had vanished.
    std::future::pending().await
}
