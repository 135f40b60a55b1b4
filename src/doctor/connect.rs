//! Connects to a server, through a proxy if there is one, and checks what the connection shows.

use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;
use url::Url;

use super::{
    check::Check,
    format::span,
    proxy,
    stream::{Failure, Stream, open, secure},
};
use crate::config::{ClientIdentity, Proxy};

/// Time limit of all three steps together.
const LIMIT: Duration = Duration::from_secs(5);

/// Connects to the server of a URL, and adds what the connection shows.
///
/// The finding of a failed connection never contains the URL.
pub(super) async fn connect(
    server: &str,
    url: &Url,
    default_port: u16,
    proxy: Option<&Proxy>,
    identity: Option<&ClientIdentity>,
    checks: &mut Vec<Check>,
) -> Result<Box<dyn Stream>, Check> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(default_port);
    let is_tls = matches!(url.scheme(), "https" | "amqps" | "rediss");
    let start = Instant::now();
    let failed = |failure| finding(server, failure);
    let connecting = async {
        let Some(proxy) = proxy else {
            return open(host, port, is_tls, identity).await.map_err(failed);
        };
        let stream = proxy::connect(proxy, url).await?;
        let what = format!("{} connects to {server}", proxy.name);
        checks.push(Check::ok("proxy", what));
        secure(host, stream, is_tls, identity).await.map_err(failed)
    };
    let connected = timeout(LIMIT, connecting).await;
    let (stream, expiry) = connected.unwrap_or_else(|_| {
        Err(match proxy {
            Some(proxy) if !checks.iter().any(|check| check.name == "proxy") => {
                let what = format!(
                    "the proxy {} did not connect to {server} within {}",
                    proxy.name,
                    span(LIMIT)
                );
                Check::finding("proxy", what).remedy(format!(
                    "check host and port in {}, that the proxy is running, and that it can reach {server}",
                    proxy.variable
                ))
            }
            _ => failed(Failure::Network("no answer in time".to_owned())),
        })
    })?;
    checks.push(Check::ok("connection", format!("connected in {}", span(start.elapsed()))));
    checks.extend(expiry.map(|expiry| expiry.check(SystemTime::now())));
    Ok(stream)
}

fn finding(server: &str, failure: Failure) -> Check {
    let finding =
        |why: &str| Check::finding("connection", format!("cannot connect to {server}: {why}"));
    match failure {
        Failure::Network(why) => finding(&why),
        Failure::Tls(why) => finding(&why).remedy(
            "the network connection works: correct the certificate or TLS settings that the finding names",
        ),
    }
}
