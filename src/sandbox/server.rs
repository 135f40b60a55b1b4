//! Starts and stops the server, and controls it from code.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::response::Response;
use hyper::Version;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    app::App,
    call::ApiCall,
    connection,
    hook::{Hook, Simulation},
    log,
    options::Options,
    routes::Service,
    stats::Stats,
};

/// How long [`Sandbox::stop`] waits for requests in flight.
const GRACE: Duration = Duration::from_secs(5);

/// A handle to a running sandbox.
///
/// Clones are cheap. The sandbox stops when the last one is dropped.
#[derive(Clone)]
pub struct Sandbox {
    pub(super) app: Arc<App>,
    server: Arc<Server>,
}

struct Server {
    addr: SocketAddr,
    service: Arc<Service>,
    /// Stops the server with the last handle.
    _stop: DropGuard,
}

impl Sandbox {
    /// Serves on a listener, in the background of the current Tokio runtime.
    ///
    /// # Errors
    /// If an option is out of range, or the listener has no local address.
    pub fn start(listener: TcpListener, options: Options) -> io::Result<Self> {
        Self::serve(listener, options, None)
    }

    /// Serves like [`Sandbox::start`], but leaves the answer to every API call to `hook`.
    ///
    /// The hook runs once for each complete call, as soon as the body has arrived (at most 64 KiB),
    /// and concurrently with other calls. It may wait as long as it likes, and its future is
    /// dropped if the caller closes the connection. It receives calls below any path prefix.
    ///
    /// The sandbox itself validates, delays and records nothing, unless the hook asks for it with
    /// [`Simulation::answer`]. Pages and control endpoints work as usual.
    ///
    /// # Errors
    /// If an option is out of range, or the listener has no local address.
    pub fn start_with_hook<F>(
        listener: TcpListener,
        options: Options,
        hook: impl Fn(ApiCall, Simulation) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let hook: Hook = Arc::new(move |call, simulation| Box::pin(hook(call, simulation)));
        Self::serve(listener, options, Some(hook))
    }

    fn serve(listener: TcpListener, options: Options, hook: Option<Hook>) -> io::Result<Self> {
        let options = options.validated()?;
        let addr = listener.local_addr()?;
        let stopping = CancellationToken::new();
        let app = Arc::new(App::new(options, stopping.clone()));
        let service = Arc::new(Service { app: Arc::clone(&app), hook });
        let tasks = &app.tasks;
        tasks.spawn(connection::accept_all(
            listener,
            Arc::clone(&service),
            tasks.clone(),
            stopping.clone(),
        ));
        let reporting = Arc::clone(&app);
        tasks.spawn(async move { reporting.report_timeouts().await });
        tasks.close();
        let server = Server { addr, service, _stop: stopping.drop_guard() };
        Ok(Self { app, server: Arc::new(server) })
    }

    /// Serves one more connection, such as one that the caller accepted behind TLS.
    ///
    /// The version is HTTP/1.1 or HTTP/2. Returns once the connection has ended.
    pub async fn serve_connection<S>(&self, stream: S, version: Version)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Arc::clone(&self.server.service);
        let stopping = self.app.stopping.clone();
        let serving = connection::serve(stream, version, service, stopping);
        self.app.tasks.track_future(serving).await;
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }

    /// The base URL for callers on this machine, such as `http://127.0.0.1:8085`.
    ///
    /// It includes the path prefix and does not end in a slash.
    pub fn url(&self) -> String {
        let mut addr = self.server.addr;
        match addr {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
                addr.set_ip(Ipv4Addr::LOCALHOST.into())
            }
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
                addr.set_ip(Ipv6Addr::LOCALHOST.into())
            }
            _ => {}
        }
        format!("http://{addr}{}", self.app.options.path_prefix)
    }

    /// Counts of calls, tokens, sessions and pages.
    pub fn stats(&self) -> Stats {
        self.app.stats()
    }

    /// Expires all tokens.
    pub fn expire_tokens(&self) {
        self.app.backend().expire_tokens(Instant::now());
    }

    /// Stops accepting connections, and waits up to five seconds for requests in flight.
    ///
    /// Simulated latency ends at once.
    pub async fn stop(&self) {
        self.app.stopping.cancel();
        if timeout(GRACE, self.app.tasks.wait()).await.is_err() {
            log::grace_period_over(GRACE);
        }
    }
}
