//! Asks a proxy for a connection to the platform, and explains its refusal.
//!
//! reqwest hides the status of a refused CONNECT, so this speaks to the proxy itself.

use std::net::IpAddr;

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::lookup_host,
};
use url::{Host, Url};

use super::{
    check::Check,
    stream::{Failure, Stream, open},
};
use crate::config::{Proxy, ProxyScheme};

/// Longest head of an answer to CONNECT, as in hyper-util.
const MAX_HEAD: usize = 8 * 1024;
/// SOCKS5's methods of authentication.
const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;

/// Why a proxy made no connection, and how to fix it.
struct Refusal {
    /// Follows the proxy's name.
    what: String,
    remedy: String,
}

fn refusal(what: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { what: what.into(), remedy: remedy.into() }
}

/// Connects to the host of a URL through a proxy. The finding names the proxy.
pub(super) async fn connect(proxy: &Proxy, url: &Url) -> Result<Box<dyn Stream>, Check> {
    through(proxy, url).await.map_err(|Refusal { what, remedy }| {
        Check::finding("proxy", format!("the proxy {} {what}", proxy.name)).remedy(remedy)
    })
}

async fn through(proxy: &Proxy, url: &Url) -> Result<Box<dyn Stream>, Refusal> {
    let host = match &proxy.host {
        Host::Ipv6(ip) => ip.to_string(),
        host => host.to_string(),
    };
    let is_tls = proxy.scheme == ProxyScheme::Https;
    let opened = open(&host, proxy.port, is_tls, None).await.map_err(|failure| match failure {
        Failure::Network(why) => refusal(
            format!("cannot be reached: {why}"),
            format!(
                "check host and port in {}, that the proxy is running, and that no firewall blocks the \
                 connection",
                proxy.variable
            ),
        ),
        Failure::Tls(why) => refusal(
            format!("cannot be reached over TLS: {why}"),
            format!("check scheme and port in {}, and the proxy's certificate", proxy.variable),
        ),
    });
    let mut stream = opened?.0;
    match proxy.scheme {
        ProxyScheme::Http | ProxyScheme::Https => http_connect(proxy, url, &mut *stream).await?,
        ProxyScheme::Socks5 | ProxyScheme::Socks5h => socks5(proxy, url, &mut *stream).await?,
    }
    Ok(stream)
}

async fn http_connect(proxy: &Proxy, url: &Url, stream: &mut dyn Stream) -> Result<(), Refusal> {
    let target = target(url);
    let authorization = proxy.credentials.as_ref().map(|(user, password)| {
        let pair = format!("{}:{}", user.expose_secret(), password.expose_secret());
        format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair))
    });
    let authorization = authorization.unwrap_or_default();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    let broke_off = |_| broke_off(proxy);
    stream.write_all(request.as_bytes()).await.map_err(broke_off)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(not_a_proxy(proxy));
        }
        // Byte by byte: what follows the head belongs to the platform.
        head.push(stream.read_u8().await.map_err(broke_off)?);
        if !b"HTTP/1.".starts_with(&head[..head.len().min(7)]) {
            return Err(not_a_proxy(proxy));
        }
    }
    let head = String::from_utf8_lossy(&head);
    match head.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok()) {
        Some(200) => Ok(()),
        Some(status) => Err(refused_connect(proxy, &target, status, &head)),
        None => Err(not_a_proxy(proxy)),
    }
}

fn refused_connect(proxy: &Proxy, target: &str, status: u16, head: &str) -> Refusal {
    let what = format!("answers CONNECT {target} with status {status}");
    match status {
        407 if !offers_basic(head) => refusal(
            what,
            "let the proxy accept Basic authentication, the only kind that the worker has, or this machine's \
             address",
        ),
        407 => refusal(what, credentials_remedy(proxy)),
        500..=599 => refusal(
            what,
            "check from the proxy's machine that the platform's host can be resolved and reached",
        ),
        _ => refusal(
            what,
            "let the proxy's rules allow CONNECT to this host and port, or list the host in NO_PROXY",
        ),
    }
}

/// Whether an answer with status 407 offers Basic authentication, or does not say what it offers.
fn offers_basic(head: &str) -> bool {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let mut offers = headers
        .filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authenticate"))
        .map(|(_, offer)| offer.to_ascii_lowercase())
        .peekable();
    offers.peek().is_none() || offers.any(|offer| offer.contains("basic"))
}

/// The dialogue of RFC 1928, with passwords by RFC 1929.
async fn socks5(proxy: &Proxy, url: &Url, stream: &mut dyn Stream) -> Result<(), Refusal> {
    let address = socks_address(proxy, url).await?;
    let broke_off = |_| broke_off(proxy);
    let method = if proxy.credentials.is_some() { PASSWORD } else { NO_AUTHENTICATION };
    stream.write_all(&[5, 1, method]).await.map_err(broke_off)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(broke_off)?;
    if answer[0] != 5 {
        return Err(not_a_proxy(proxy));
    }
    if answer[1] != method {
        let what = match &proxy.credentials {
            Some(_) => "does not accept a user and a password",
            None => "requires authentication",
        };
        return Err(refusal(what, credentials_remedy(proxy)));
    }
    if let Some((user, password)) = &proxy.credentials {
        let mut message = vec![1];
        for part in [user, password] {
            let part = part.expose_secret();
            let length = u8::try_from(part.len()).map_err(|_| {
                let what = "cannot be given a user or a password of more than 255 bytes";
                refusal(what, format!("use shorter ones in {}", proxy.variable))
            })?;
            message.push(length);
            message.extend_from_slice(part.as_bytes());
        }
        stream.write_all(&message).await.map_err(broke_off)?;
        stream.read_exact(&mut answer).await.map_err(broke_off)?;
        if answer[1] != 0 {
            return Err(refusal("refuses its user or password", credentials_remedy(proxy)));
        }
    }
    let port = url.port_or_known_default().unwrap_or(443).to_be_bytes();
    stream.write_all(&[&[5, 1, 0], &address[..], &port].concat()).await.map_err(broke_off)?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).await.map_err(broke_off)?;
    if reply[0] != 5 {
        return Err(not_a_proxy(proxy));
    }
    let why = match reply[1] {
        0 => {
            let length = match reply[3] {
                1 => 4,
                4 => 16,
                _ => usize::from(stream.read_u8().await.map_err(broke_off)?),
            };
            let mut bound = vec![0; length + 2];
            return stream.read_exact(&mut bound).await.map(drop).map_err(broke_off);
        }
        2 => "its rules do not allow it",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "TTL expired",
        8 => "address type not supported",
        _ => "it failed",
    };
    let what = format!("does not connect to {}: {why} (SOCKS5 reply {})", target(url), reply[1]);
    Err(refusal(
        what,
        "let the proxy's rules allow this host and port, and check that it can reach the platform",
    ))
}

/// The platform's address as SOCKS5 has it: type and address. Only `socks5h` sends a name.
async fn socks_address(proxy: &Proxy, url: &Url) -> Result<Vec<u8>, Refusal> {
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::from(ip),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip),
        Some(Host::Domain(name)) if proxy.scheme == ProxyScheme::Socks5h => {
            let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
            return Ok([&[3, length], name.as_bytes()].concat());
        }
        Some(Host::Domain(name)) => {
            let found = lookup_host((name, 0)).await.ok().and_then(|mut found| found.next());
            let unknown = || {
                refusal(
                    "was not asked: this machine cannot resolve the platform's host",
                    format!(
                        "write socks5h instead of socks5 in {}, so that the proxy resolves it",
                        proxy.variable
                    ),
                )
            };
            found.ok_or_else(unknown)?.ip()
        }
        None => return Err(not_a_proxy(proxy)),
    };
    Ok(match ip {
        IpAddr::V4(ip) => [&[1][..], &ip.octets()].concat(),
        IpAddr::V6(ip) => [&[4][..], &ip.octets()].concat(),
    })
}

fn target(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or(443);
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

fn credentials_remedy(proxy: &Proxy) -> String {
    match &proxy.credentials {
        Some(_) => format!(
            "check user and password in {}: special characters must be percent-encoded",
            proxy.variable
        ),
        None => format!(
            "put user and password into {}, such as {}://user:password@…, percent-encoded",
            proxy.variable,
            proxy.scheme.as_str()
        ),
    }
}

fn broke_off(proxy: &Proxy) -> Refusal {
    let what = "closes the connection instead of connecting to the platform";
    refusal(what, format!("check scheme and port in {}, and the proxy's log", proxy.variable))
}

fn not_a_proxy(proxy: &Proxy) -> Refusal {
    let scheme = proxy.scheme.as_str();
    let what = format!("does not answer as a proxy of the scheme {scheme} does");
    refusal(what, format!("check scheme and port in {}", proxy.variable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_without_basic_authentication_is_recognized() {
        let head = |offer: &str| format!("HTTP/1.1 407 No\r\n{offer}\r\n");
        assert!(offers_basic(&head("")));
        assert!(offers_basic(&head(
            "Proxy-Authenticate: Negotiate\r\nproxy-authenticate: Basic realm=\"x\"\r\n"
        )));
        assert!(!offers_basic(&head("Proxy-Authenticate: NTLM\r\n")));
    }
}
