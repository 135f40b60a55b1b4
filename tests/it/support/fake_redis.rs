//! A server that speaks Redis' protocol and answers what a test says: for situations that real servers
//! reach too rarely.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// Answers a command, for example `CLUSTER SLOTS`, in Redis' protocol, after a while.
type Respond = dyn Fn(&str) -> (Duration, String) + Send + Sync;

/// A server with scripted answers. Stops when it is dropped.
pub struct FakeRedis {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

struct Shared {
    respond: Box<Respond>,
    down: AtomicBool,
    connections: AtomicUsize,
}

impl FakeRedis {
    /// Answers at once. `OK` is an answer to anything.
    pub async fn start(respond: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, move |command| (Duration::ZERO, respond(command)))
    }

    /// The same; the answers may depend on the port.
    pub async fn start_with_port(
        respond: impl Fn(u16, &str) -> String + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self::serve(listener, move |command| (Duration::ZERO, respond(port, command)))
    }

    /// Answers after the given time.
    pub fn serve(
        listener: TcpListener,
        respond: impl Fn(&str) -> (Duration, String) + Send + Sync + 'static,
    ) -> Self {
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            respond: Box::new(respond),
            down: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        });
        let listening = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self { addr, shared, listening }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Closes each connection, those that are open at their next command.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// How many connections there have been since the last call.
    pub fn take_connections(&self) -> usize {
        self.shared.connections.swap(0, Ordering::SeqCst)
    }
}

impl Drop for FakeRedis {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        shared.connections.fetch_add(1, Ordering::SeqCst);
        if !shared.down.load(Ordering::SeqCst) {
            connections.spawn(serve(socket, Arc::clone(&shared)));
        }
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    let mut socket = BufReader::new(socket);
    while let Some(command) = next_command(&mut socket).await {
        if shared.down.load(Ordering::SeqCst) {
            return;
        }
        let (delay, answer) = (shared.respond)(&command);
        sleep(delay).await;
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The words of a command, separated by spaces.
async fn next_command(socket: &mut BufReader<TcpStream>) -> Option<String> {
    let count = number(socket, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(socket, '$').await? + 2];
        socket.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
    }
    Some(words.join(" "))
}

async fn number(socket: &mut BufReader<TcpStream>, kind: char) -> Option<usize> {
    let mut line = String::new();
    socket.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(kind)?.parse().ok()
}
