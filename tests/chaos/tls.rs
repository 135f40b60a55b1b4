//! TLS in front of every server, with certificates of a private authority.

use crate::support::{
    Authority, TlsProxy,
    http2_front::{FrontOptions, Http2Front, Protocols},
    tls::tls_url,
};

/// The names by which workers reach the servers.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

pub struct Tls {
    authority: Authority,
    /// The URLs of each server's nodes.
    pub rabbitmq: Vec<String>,
    pub redis: Vec<String>,
    /// The platform with HTTP/2 and HTTP/1.1, and with HTTP/1.1 alone.
    platforms: [Http2Front; 2],
    _proxies: Vec<TlsProxy>,
}

impl Tls {
    /// Starts it in front of the servers of these URLs.
    pub async fn to(rabbitmq: &[String], redis: &[String], platform: &str) -> Self {
        let authority = Authority::new();
        let identity = authority.issue(&NAMES);
        let mut proxies = Vec::new();
        let mut urls = Vec::new();
        for url in rabbitmq.iter().chain(redis) {
            let proxy = TlsProxy::to(url, &identity).await;
            urls.push(tls_url(url, proxy.port()));
            proxies.push(proxy);
        }
        let redis = urls.split_off(rabbitmq.len());
        let front = || Http2Front::to(platform, &identity, FrontOptions::default());
        let platforms = [front().await, front().await];
        platforms[1].set_protocols(Protocols::Http1);
        Self { authority, rabbitmq: urls, redis, platforms, _proxies: proxies }
    }

    /// The platform for a worker: every other one speaks HTTP/2.
    pub fn platform(&self, slot: usize) -> &str {
        &self.platforms[slot % 2].url
    }

    /// The settings with which a worker trusts the authority alone.
    pub fn trust(&self) -> [(String, String); 2] {
        [
            ("SSL_CERT_FILE".to_owned(), self.authority.certificate_file()),
            ("SSL_CERT_DIR".to_owned(), String::new()),
        ]
    }
}
