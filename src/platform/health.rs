//! Asks a host of the platform for its health, for `handoff doctor`.

use std::time::Duration;

use reqwest::{Proxy, StatusCode};
use secrecy::ExposeSecret;
use url::Url;

use super::{
    connections::{ConnectionSettings, single_client},
    link::join,
};
use crate::{config::Route, error_chain, tls};

const HEALTH_ROUTE: &str = "/api/health";
/// Time limit of the call.
const LIMIT: Duration = Duration::from_secs(5);

/// Calls `GET {base}/api/health` without credentials, and returns the status of the answer.
///
/// # Errors
/// Why there is no answer. Holds neither the URL nor text of the server.
pub(crate) async fn health(base: &Url, route: &Route) -> Result<StatusCode, &'static str> {
    let proxy = route.proxy().map(|proxy| Proxy::all(proxy.url().expose_secret())).transpose();
    let proxy = proxy.map_err(|_| "the proxy's URL is invalid")?;
    let client =
        single_client(ConnectionSettings { url: base, timeout: LIMIT, proxy, resolver: None })?;
    let answer = client.get(join(base, HEALTH_ROUTE)).timeout(LIMIT).send().await;
    answer.map(|answer| answer.status()).map_err(|error| {
        if error.is_timeout() {
            "no answer in time"
        } else if error_chain::find(&error).is_some_and(error_chain::is_unknown_host) {
            "the host was not found"
        } else {
            tls::explain(&error).unwrap_or("the connection failed")
        }
    })
}
