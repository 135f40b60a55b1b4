//! Opens lapin's TCP socket, and keeps a handle to shut it down.
//!
//! lapin 4.12 runs each connection on its own thread, which reads until the socket ends. Dropping
//! the connection, or the future that opens it, does not end the socket: with a peer that stays
//! silent, the thread and two file descriptors would stay until the peer closes. (Not reported
//! upstream.)

use std::{
    future::pending,
    io::{Error, ErrorKind, Result},
    mem::replace,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPAuthority, AMQPScheme, AMQPUri},
};
use parking_lot::Mutex;
use tokio::{
    net::{TcpStream as TokioTcpStream, lookup_host},
    sync::oneshot,
    time::timeout,
};

/// Limit of a TCP connect.
/// A host may have several addresses, and nodes, and an unreachable one must leave time for the others.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// A handle on a lapin connection's socket, which dropping it shuts down.
pub(super) struct Socket(Arc<Mutex<SocketState>>);

enum SocketState {
    /// Not connected yet. The sender passes on a handle for [`silence`].
    Opening(oneshot::Sender<TokioTcpStream>),
    Open(TcpStream),
    Closed,
}

/// The addresses of the host.
pub(super) async fn resolve(uri: &AMQPUri) -> Result<Vec<SocketAddr>> {
    let AMQPAuthority { host, port, .. } = &uri.authority;
    Ok(lookup_host((host.as_str(), *port)).await?.collect())
}

/// Opens a connection to an address and a handle on its socket. The peer must send its first byte
/// within `first_byte`. Dropping the future shuts the socket down, too.
pub(super) async fn open(
    uri: AMQPUri,
    identity: Option<OwnedIdentity>,
    address: SocketAddr,
    first_byte: Duration,
    properties: ConnectionProperties,
) -> lapin::Result<(Connection, Socket)> {
    let tls = OwnedTLSConfig { identity, cert_chain: None };
    let (opened_tx, opened) = oneshot::channel();
    let socket = Socket(Arc::new(Mutex::new(SocketState::Opening(opened_tx))));

    let state = Arc::clone(&socket.0);
    let runtime = lapin::runtime::default_runtime()?;
    let connecting = Connection::connector(
        uri,
        runtime,
        // lapin runs this on the connection's thread.
        async move |uri: AMQPUri, runtime| {
            let connect = AsyncTcpStream::connect(&runtime, address);
            let connected = timeout(TCP_TIMEOUT, connect).await;
            let stream = connected.map_err(Error::from).flatten()?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                keep_handle(&state, plain.get_ref().as_fd())?;
            }
            let host = &uri.authority.host;
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                AMQPScheme::AMQPS => Ok(stream.into_tls(host, tls.as_ref()).await?),
            }
        },
        properties,
    );
    tokio::select! {
        connected = connecting => connected.map(|connection| (connection, socket)),
        () = silence(opened, first_byte) => Err(Error::from(ErrorKind::TimedOut).into()),
    }
}

/// Returns if the peer accepts the connection and sends nothing for `limit`, and never otherwise.
async fn silence(opened: oneshot::Receiver<TokioTcpStream>, limit: Duration) {
    if let Ok(socket) = opened.await
        && timeout(limit, socket.readable()).await.is_err()
    {
        return;
    }
    pending().await
}

/// Keeps a handle on a connected socket, or fails if [`Socket`] was dropped.
fn keep_handle(state: &Mutex<SocketState>, socket: BorrowedFd<'_>) -> Result<()> {
    let handle = TcpStream::from(socket.try_clone_to_owned()?);
    let readable = TokioTcpStream::from_std(handle.try_clone()?)?;
    let mut state = state.lock();
    match replace(&mut *state, SocketState::Closed) {
        SocketState::Opening(opened) => {
            *state = SocketState::Open(handle);
            let _ = opened.send(readable);
            Ok(())
        }
        SocketState::Open(_) | SocketState::Closed => Err(ErrorKind::ConnectionAborted.into()),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let SocketState::Open(socket) = replace(&mut *self.0.lock(), SocketState::Closed) {
            // Data already written is still sent. This fails only if the socket is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
