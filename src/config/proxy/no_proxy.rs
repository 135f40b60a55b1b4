//! `NO_PROXY`: the hosts that are reached without a proxy.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

/// The entries of `NO_PROXY`.
///
/// hyper-util 0.1's own list, which reqwest uses, ignores entries with a port (not reported upstream).
#[derive(Debug, Default)]
pub(super) struct NoProxy {
    entries: Vec<Entry>,
    /// The number of entries that can never match.
    pub(super) invalid: usize,
}

#[derive(Debug)]
struct Entry {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug)]
enum Hosts {
    All,
    /// This domain and all below it, in lower case.
    Domain(String),
    Network(IpNet),
}

impl NoProxy {
    /// Parses entries that are separated by commas or white space.
    pub(super) fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let entries = text.split(|c: char| c == ',' || c.is_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()) {
            match Entry::parse(entry) {
                Some(entry) => list.entries.push(entry),
                None => list.invalid += 1,
            }
        }
        list
    }

    /// Whether the host of a URL is reached directly. A network matches IP addresses, not names.
    pub(super) fn contains(&self, url: &Url) -> bool {
        self.entries.iter().any(|entry| entry.matches(url))
    }
}

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { hosts: Hosts::All, port: None });
        }
        if let Some(network) = network(text) {
            return Some(Self { hosts: Hosts::Network(network), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => {
                (host, Some(port.parse().ok().filter(|port| *port > 0)?))
            }
            _ => (text, None),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let hosts = match network(bracketed.unwrap_or(host)) {
            Some(network) => Hosts::Network(network),
            None if host == "*" => Hosts::All,
            None => {
                let name = host.strip_prefix('*').unwrap_or(host);
                let name = name.trim_start_matches('.').trim_end_matches('.');
                // Also converts an internationalised name to the form that URLs have.
                let Host::Domain(name) = Host::parse(name).ok()? else { return None };
                Hosts::Domain(name)
            }
        };
        // `*` and `/` can stand in a domain name of a URL, and match no host.
        let is_name = |name: &str| !name.contains(['*', '/']);
        let can_match = !matches!(&hosts, Hosts::Domain(name) if !is_name(name));
        can_match.then_some(Self { hosts, port })
    }

    fn matches(&self, url: &Url) -> bool {
        if self.port.is_some_and(|port| url.port_or_known_default() != Some(port)) {
            return false;
        }
        match (&self.hosts, url.host()) {
            (Hosts::All, _) => true,
            (Hosts::Domain(domain), Some(Host::Domain(host))) => {
                let host = host.trim_end_matches('.');
                let above = host.strip_suffix(domain.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Hosts::Network(network), Some(Host::Ipv4(ip))) => network.contains(&IpAddr::from(ip)),
            (Hosts::Network(network), Some(Host::Ipv6(ip))) => network.contains(&IpAddr::from(ip)),
            _ => false,
        }
    }
}

/// An IP address, or a network in CIDR notation.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_match_as_users_of_curl_expect() {
        for (list, matching, others) in [
            ("*", &["idv.example.com", "10.0.0.1", "[::1]"][..], &[][..]),
            ("idv.example.com", &["idv.example.com", "eu.idv.example.com"], &["example.com"]),
            (".example.com", &["example.com", "idv.example.com"], &["anexample.com"]),
            ("*.example.com", &["idv.example.com", "example.com"], &["anexample.com"]),
            ("EXAMPLE.com.", &["example.com", "example.com."], &["example.org"]),
            ("other.example, idv.example.com", &["idv.example.com"], &["an.other"]),
            ("bücher.example", &["xn--bcher-kva.example"], &["bcher.example"]),
            ("example.com:8443", &["example.com:8443", "a.example.com:8443"], &["example.com"]),
            ("example.com:443", &["example.com"], &["example.com:8443"]),
            ("*:8443", &["example.com:8443", "10.0.0.1:8443"], &["example.com"]),
            ("10.0.0.0/8", &["10.1.2.3", "10.1.2.3:8443"], &["11.1.2.3", "ten.example"]),
            ("10.1.2.3", &["10.1.2.3"], &["10.1.2.4"]),
            ("10.1.2.3:8443", &["10.1.2.3:8443"], &["10.1.2.3"]),
            ("2001:db8::/32", &["[2001:db8::7]"], &["[2001:db9::7]"]),
            ("2001:db8::7", &["[2001:db8::7]:8443"], &["[2001:db8::8]"]),
            ("[2001:db8::7]", &["[2001:db8::7]"], &["[2001:db8::8]"]),
            ("[2001:db8::7]:8443", &["[2001:db8::7]:8443"], &["[2001:db8::7]"]),
            ("", &[], &["example.com"]),
            (" , ,", &[], &["example.com", "10.0.0.1"]),
        ] {
            let no_proxy = NoProxy::parse(list);
            assert_eq!(no_proxy.invalid, 0, "{list}");
            let contains =
                |host: &str| no_proxy.contains(&Url::parse(&format!("https://{host}/")).unwrap());
            for host in matching {
                assert!(contains(host), "{list} does not match {host}");
            }
            for host in others {
                assert!(!contains(host), "{list} matches {host}");
            }
        }
    }

    #[test]
    fn entries_that_match_nothing_are_counted() {
        for entry in
            ["https://example.com", "10.0.0.0/33", "example.*", "exa mple:x", "example.com:0", "."]
        {
            assert!(NoProxy::parse(entry).invalid > 0, "{entry}");
        }
    }
}
