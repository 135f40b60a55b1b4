//! Binds the address of the probes and metrics.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; [`super::listener`] limits the open ones.
const BACKLOG: i32 = 128;

/// Binds an address. `[::]` is bound for IPv4 too, whatever `net.ipv6.bindv6only` says, so that one setting
/// serves every pod and container; where the kernel has no IPv6, `0.0.0.0` is bound in its place.
pub(super) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    match bind_exactly(addr) {
        Err(error) if addr.ip().is_unspecified() && addr.is_ipv6() && has_no_ipv6(&error) => {
            bind_exactly((Ipv4Addr::UNSPECIFIED, addr.port()).into())
        }
        bound => bound,
    }
}

fn bind_exactly(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A restarted worker finds connections of its predecessor in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The kernel was built or started without IPv6 (`ipv6.disable=1`), or has it switched off for every
/// interface (`net.ipv6.conf.all.disable_ipv6=1`).
fn has_no_ipv6(error: &io::Error) -> bool {
    /// Linux' number of "address family not supported by protocol", for which `ErrorKind` has no stable name.
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpStream};

    use super::*;

    #[tokio::test]
    async fn every_address_of_ipv6_serves_ipv4_too() {
        let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    #[test]
    fn kernel_without_ipv6_is_recognised() {
        assert!(has_no_ipv6(&io::Error::from_raw_os_error(97)));
        assert!(has_no_ipv6(&ErrorKind::AddrNotAvailable.into()));
        assert!(!has_no_ipv6(&ErrorKind::AddrInUse.into()));
    }
}
