//! Builds reqwest clients. Each has connections of its own.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, ClientBuilder, Proxy, dns::Resolve, redirect};
use rustls::{
    ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_platform_verifier::Verifier;
use url::Url;

use super::{
    connects::{ConnectWatch, WatchedConnects},
    lookup::SharedLookup,
};
use crate::tls;

/// How long a connection is kept without a call. Servers close idle connections, mostly after 30 s or more.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

const USER_AGENT: &str = concat!("handoff/", env!("CARGO_PKG_VERSION"));

/// Which connections a call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform) enum Reuse {
    /// Any.
    Allowed,
    /// Only new ones: the platform may have closed those that carried an earlier call.
    Avoided,
}

/// How to reach the platform.
pub(in crate::platform) struct ConnectionSettings<'a> {
    pub(in crate::platform) url: &'a Url,
    /// The time limit of one call.
    pub(in crate::platform) timeout: Duration,
    pub(in crate::platform) proxy: Option<Proxy>,
    /// Replaces the system's.
    pub(in crate::platform) resolver: Option<Arc<dyn Resolve>>,
}

/// What all clients have in common.
pub(super) struct Clients {
    /// Shared, because reading the trusted authorities takes milliseconds, and so that clients can resume each
    /// other's TLS sessions. `None` without TLS.
    tls: Option<ClientConfig>,
    proxy: Option<Proxy>,
    /// The time limit of one call.
    timeout: Duration,
    resolver: Arc<dyn Resolve>,
}

/// A client that makes a new HTTP/1.1 connection for each call.
pub(in crate::platform) fn single_client(
    settings: ConnectionSettings<'_>,
) -> Result<Client, &'static str> {
    Clients::new(settings)?.unpooled().map_err(|_| "the HTTP client cannot be set up")
}

impl Clients {
    pub(super) fn new(settings: ConnectionSettings<'_>) -> Result<Self, &'static str> {
        let ConnectionSettings { url, timeout, proxy, resolver } = settings;
        let tls = (url.scheme() != "http").then(tls_config).transpose()?;
        let resolver = resolver.unwrap_or_else(|| Arc::new(SharedLookup::system()));
        Ok(Self { tls, proxy, timeout, resolver })
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A client that lets the platform choose the HTTP version.
    pub(super) fn any_version(&self, watch: Option<impl ConnectWatch>) -> reqwest::Result<Client> {
        let builder = self.builder(&["h2", "http/1.1"]);
        match watch {
            Some(watch) => builder.connector_layer(WatchedConnects(watch)),
            None => builder,
        }
        .build()
    }

    /// A client that makes a new HTTP/1.1 connection for each call.
    pub(super) fn unpooled(&self) -> reqwest::Result<Client> {
        self.builder(&["http/1.1"]).http1_only().pool_max_idle_per_host(0).build()
    }

    /// A client for HTTP/2 with one connection at a time: knowing the version, reqwest 0.13.5 lets calls wait
    /// for a connection that is being made, instead of making one for each.
    pub(super) fn http2(&self, watch: impl ConnectWatch) -> reqwest::Result<Client> {
        let builder = self.builder(&["h2"]).http2_prior_knowledge();
        builder.connector_layer(WatchedConnects(watch)).build()
    }

    fn builder(&self, protocols: &[&str]) -> ClientBuilder {
        // Finds an HTTP/2 connection that swallows everything even while no call is in flight. Not reported by
        // any error: hyper 1.12 uses such a connection indefinitely (hyperium/hyper#4186, open).
        let ping = (self.timeout / 3).clamp(Duration::from_secs(1), Duration::from_secs(5));
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            // Following a redirect would send the API key or personal data to another host.
            .redirect(redirect::Policy::none())
            // Only this crate decides on retries. With `never()` alone, reqwest 0.13.5 would still copy each
            // request in case of a retry (not reported upstream); with a maximum of 0 it does not.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .pool_idle_timeout(IDLE_TIMEOUT)
            // hyper-util 0.1 divides it by the number of addresses (hyperium/hyper#1972). Without it, the first
            // address that does not answer takes the whole time of the call, and a silent proxy is not named.
            .connect_timeout(connect_timeout(self.timeout))
            .http2_keep_alive_interval(ping)
            .http2_keep_alive_timeout(ping.max(Duration::from_secs(2)))
            .http2_keep_alive_while_idle(true)
            .dns_resolver(Arc::clone(&self.resolver))
            .tcp_nodelay(true);
        builder = match &self.proxy {
            Some(proxy) => builder.proxy(proxy.clone()),
            None => builder.no_proxy(),
        };
        match &self.tls {
            Some(tls) => {
                let mut tls = tls.clone();
                tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().into()).collect();
                builder.tls_backend_preconfigured(tls)
            }
            // Without TLS, a host without a certificate store must not fail.
            None => builder.tls_certs_only([]),
        }
    }
}

/// Half of the call's time, so that the other half remains for the call itself.
fn connect_timeout(call: Duration) -> Duration {
    (call / 2).min(Duration::from_secs(5))
}

/// As reqwest itself would: TLS 1.2 and 1.3, and the system's certificate authorities.
fn tls_config() -> Result<ClientConfig, &'static str> {
    let explain = |error| tls::explain(&error).unwrap_or("TLS cannot be set up");
    let provider = CryptoProvider::get_default()
        .map_or_else(|| Arc::new(aws_lc_rs::default_provider()), Arc::clone);
    let verifier = Verifier::new(Arc::clone(&provider)).map_err(explain)?;
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(explain)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}
