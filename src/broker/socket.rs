//! The socket under a connection, opened here and kept hold of.
//!
//! The library has a thread for each connection, and that thread waits for RabbitMQ until the socket
//! ends, whoever has stopped waiting for the connection meanwhile. Where the peer is silent for good,
//! a network that swallows all, say, it would never end. So we keep a second handle on the socket,
//! and end it when the connection is of no more use: then the thread goes, too.

use std::{
    future::pending,
    io::{Error, ErrorKind, Result},
    mem::replace,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::TLSConfig,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{
    net::{TcpStream as Listened, lookup_host},
    sync::oneshot,
    time::timeout,
};

/// Limit of opening a TCP connection to one address. A host may have several, some of them dead.
const TCP_LIMIT: Duration = Duration::from_secs(2);
/// Limit of waiting for the first byte. RabbitMQ answers at once, in AMQP and in TLS; a peer that does
/// not is frozen or cut off, and the sooner it is asked anew, the sooner it is found healed.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Our handle on a socket that the library reads and writes. Ends the socket when it is dropped.
pub(super) struct Socket(Arc<Mutex<State>>);

enum State {
    /// Holds where to tell that it is open.
    Opening(oneshot::Sender<Listened>),
    Open(TcpStream),
    Ended,
}

/// Opens a connection, and keeps a handle on its socket.
///
/// # Errors
/// RabbitMQ cannot be reached, says no, or says nothing. Where this future is dropped, nothing is
/// left behind either.
pub(super) async fn open(
    uri: AMQPUri,
    properties: ConnectionProperties,
) -> lapin::Result<(Connection, Socket)> {
    // An IPv6 address stands in brackets in a URL, and nowhere else.
    let host = uri.authority.host.trim_matches(['[', ']']).to_owned();
    let addresses = lookup_host((host.as_str(), uri.authority.port)).await?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    let (tell, opened) = oneshot::channel();
    let socket = Socket(Arc::new(Mutex::new(State::Opening(tell))));

    let state = Arc::clone(&socket.0);
    let runtime = lapin::runtime::default_runtime()?;
    let connecting = Connection::connector(
        uri,
        runtime,
        // This runs on the library's thread.
        async move |uri: AMQPUri, runtime| {
            let mut failed = Error::from(ErrorKind::NotFound);
            for address in &addresses {
                let connect = AsyncTcpStream::connect(&runtime, *address);
                let stream = match timeout(TCP_LIMIT, connect).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        failed = error;
                        continue;
                    }
                    Err(_) => {
                        failed = ErrorKind::TimedOut.into();
                        continue;
                    }
                };
                if let AsyncTcpStream::Plain(plain) = &stream {
                    keep(&state, plain.get_ref().as_fd())?;
                }
                return match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => Ok(stream.into_tls(&host, TLSConfig::default()).await?),
                };
            }
            Err(failed.into())
        },
        properties,
    );
    tokio::select! {
        connected = connecting => connected.map(|connection| (connection, socket)),
        () = silence(opened) => Err(Error::from(ErrorKind::TimedOut).into()),
    }
}

/// Ends when the peer has accepted the connection and says nothing, not even a word.
async fn silence(opened: oneshot::Receiver<Listened>) {
    if let Ok(socket) = opened.await
        && timeout(ANSWER_LIMIT, socket.readable()).await.is_err()
    {
        return;
    }
    pending().await
}

/// Takes a handle on a socket that is open now, unless nobody wants it any more.
fn keep(state: &Mutex<State>, socket: BorrowedFd<'_>) -> Result<()> {
    let ours = TcpStream::from(socket.try_clone_to_owned()?);
    let listened = Listened::from_std(ours.try_clone()?)?;
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    match replace(&mut *state, State::Ended) {
        State::Opening(tell) => {
            *state = State::Open(ours);
            // Whoever waits for it has been there since before; if not, nobody needs to know.
            let _ = tell.send(listened);
            Ok(())
        }
        State::Open(_) | State::Ended => Err(ErrorKind::ConnectionAborted.into()),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(socket) = replace(&mut *state, State::Ended) {
            // What was written goes out all the same. One that is closed already cannot be ended.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
