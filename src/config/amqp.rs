//! The addresses of RabbitMQ's nodes.
//!
//! Parsed here and not by amq-protocol-uri 10.6: it connects to `localhost` where the URL has an IPv6
//! literal, and takes `amqp://host/` as the virtual host "" (neither reported upstream). RabbitMQ's
//! cluster operator writes URLs that end in `/`.

use std::{fmt, net::Ipv6Addr, str::FromStr, sync::Arc};

use lapin::uri::{
    AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism,
};
use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Url, form_urlencoded};

use super::{
    client_identity::ClientIdentity,
    setting::{ParseResult, ensure},
    urls::{self, url_list},
};

/// Smallest frame that RabbitMQ accepts as a limit, in bytes.
const MIN_FRAME: u32 = 8_192;
const FORM: &str = "must be an AMQP URL such as amqps://user:password@rabbitmq.example.com/%2f, or several \
     separated by commas";
const UNENCODED: &str = "holds an unencoded delimiter in user, password or virtual host: write `/` as %2F, \
     `@` as %40, `:` as %3A, `,` as %2C, `?` as %3F, `#` as %23";

/// The nodes of `HANDOFF_AMQP_URL`, at least one, and the client certificate for them.
#[derive(Clone)]
pub struct AmqpNodes {
    text: Arc<SecretString>,
    nodes: Arc<[AmqpNode]>,
    identity: Arc<Option<ClientIdentity>>,
}

/// One node. Holds a password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpNode {
    pub(crate) uri: AMQPUri,
    /// Whether the URL names a user or a password.
    has_credentials: bool,
}

impl AmqpNodes {
    /// The setting as it was given.
    pub(crate) fn text(&self) -> &SecretString {
        &self.text
    }

    pub(crate) fn nodes(&self) -> &[AmqpNode] {
        &self.nodes
    }

    /// The virtual host of the first node. All nodes of a cluster have the same.
    pub(crate) fn vhost(&self) -> &str {
        self.nodes.first().map_or("/", |node| &node.uri.vhost)
    }

    /// The client certificate to present.
    pub(crate) fn identity(&self) -> Option<&ClientIdentity> {
        (*self.identity).as_ref()
    }

    /// How to log in to a node: by the client certificate if the URL names no user.
    pub(crate) fn mechanism(&self, node: &AmqpNode) -> SASLMechanism {
        let by_certificate = self.identity().is_some() && !node.has_credentials;
        let default = if by_certificate { SASLMechanism::External } else { SASLMechanism::Plain };
        node.uri.query.auth_mechanism.unwrap_or(default)
    }

    pub(super) fn with_identity(self, identity: Arc<Option<ClientIdentity>>) -> Self {
        Self { identity, ..self }
    }

    /// Whether both were read at the same time from the same files.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.nodes, &other.nodes) && Arc::ptr_eq(&self.identity, &other.identity)
    }
}

impl AmqpNode {
    pub(crate) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    /// The URL without credentials and virtual host.
    pub(crate) fn address(&self) -> Option<Url> {
        let AMQPAuthority { host, port, .. } = &self.uri.authority;
        urls::address(&self.uri.scheme, host, *port)
    }
}

// The password must not reach a log.
impl fmt::Debug for AmqpNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpNodes({})", self.nodes.len())
    }
}

impl fmt::Debug for AmqpNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AmqpNode")
    }
}

/// Parses a list of URLs.
pub(crate) fn amqp_nodes(text: &str) -> ParseResult<AmqpNodes> {
    let nodes = url_list(text, |element| split_scheme(element).map(drop), node)?;
    Ok(AmqpNodes { text: Arc::new(text.into()), nodes, identity: Arc::default() })
}

/// The same where a client certificate is set, which TLS alone can carry.
pub(super) fn amqps_nodes(text: &str) -> ParseResult<AmqpNodes> {
    let nodes = amqp_nodes(text)?;
    ensure(
        nodes.nodes().iter().all(AmqpNode::is_tls),
        "must begin with amqps:// in each element: HANDOFF_AMQP_CERT_FILE and HANDOFF_AMQP_KEY_FILE need TLS",
    )?;
    Ok(nodes)
}

fn node(text: &str) -> ParseResult<AmqpNode> {
    ensure(!text.contains(|c: char| c.is_whitespace() || c.is_control()), FORM)?;
    let (scheme, rest) = split_scheme(text)?;
    ensure(!rest.contains('#'), UNENCODED)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_info, host_port) = match authority.rsplit_once('@') {
        Some((user_info, host_port)) => (Some(user_info), host_port),
        // `amqp://user:5/w@host` would lead to the host `user`.
        None => {
            ensure(!query.contains('@'), UNENCODED)?;
            (None, authority)
        }
    };
    // Nor may `amqp://user:a@b:5/w@host` lead to the host `b`.
    ensure(!path.contains('@'), UNENCODED)?;
    let (host, port) = host_and_port(host_port)?;
    let vhost = if path.is_empty() { "/".to_owned() } else { decode(path)? };
    ensure(vhost.len() <= 255, "must have a virtual host of at most 255 bytes")?;
    let port = port.unwrap_or_else(|| scheme.default_port());
    let authority = AMQPAuthority { userinfo: credentials(user_info.unwrap_or(""))?, host, port };
    let uri = AMQPUri { scheme, authority, vhost, query: parameters(query)? };
    Ok(AmqpNode { uri, has_credentials: user_info.is_some_and(|user_info| !user_info.is_empty()) })
}

fn split_scheme(text: &str) -> ParseResult<(AMQPScheme, &str)> {
    match text.split_once("://") {
        Some(("amqp", rest)) => Ok((AMQPScheme::AMQP, rest)),
        Some(("amqps", rest)) => Ok((AMQPScheme::AMQPS, rest)),
        _ => Err(
            "must begin with amqp:// or amqps://, as must each element of a list; write a comma in a \
             password as %2C",
        ),
    }
}

/// User and password, each `guest` where it is missing.
fn credentials(user_info: &str) -> ParseResult<AMQPUserInfo> {
    let mut credentials = AMQPUserInfo::default();
    let (username, password) = match user_info.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (user_info, None),
    };
    if !username.is_empty() {
        credentials.username = decode(username)?;
    }
    if let Some(password) = password {
        credentials.password = decode(password)?;
    }
    Ok(credentials)
}

fn host_and_port(text: &str) -> ParseResult<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or(FORM)?;
        let host: Ipv6Addr = host.parse().map_err(|_| "has an invalid IPv6 address in brackets")?;
        ensure(port.is_empty() || port.starts_with(':'), FORM)?;
        (host.to_string(), port.strip_prefix(':').unwrap_or(""))
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        ensure(!port.contains(':'), "must have an IPv6 address in brackets: amqp://[::1]:5672")?;
        let host = decode(host)?;
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || "/?#[]@:\\%".contains(c);
        ensure(!host.is_empty() && !host.contains(forbidden), FORM)?;
        (host, port)
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    let port = port.parse().ok().filter(|port| *port > 0);
    Ok((host, Some(port.ok_or("must have a port from 1 to 65535")?)))
}

fn decode(text: &str) -> ParseResult<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| "is not UTF-8 once it is percent-decoded")?.into_owned())
}

/// The parameters that lapin knows. The first of a name counts; others are ignored.
fn parameters(query: &str) -> ParseResult<AMQPQueryString> {
    let parameters = AMQPQueryString {
        frame_max: parameter(query, "frame_max")?,
        channel_max: parameter(query, "channel_max")?,
        heartbeat: parameter(query, "heartbeat")?,
        connection_timeout: parameter(query, "connection_timeout")?,
        auth_mechanism: parameter(query, "auth_mechanism")?,
    };
    ensure(
        parameters.frame_max.is_none_or(|max| max == 0 || max >= MIN_FRAME),
        "must have a `frame_max` of at least 8192 bytes, the least that RabbitMQ accepts",
    )?;
    Ok(parameters)
}

fn parameter<T: FromStr>(query: &str, name: &str) -> ParseResult<Option<T>> {
    let found = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
    let value = found.map(|(_, value)| value.parse());
    value.transpose().map_err(|_| "has an invalid value in its query")
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> AMQPUri {
        amqp_nodes(text).unwrap().nodes()[0].uri.clone()
    }

    #[test]
    fn missing_path_and_lone_slash_mean_the_virtual_host_slash() {
        for text in ["amqp://h", "amqp://h/", "amqp://h/%2f", "amqp://h?heartbeat=9", "amqp://h:1/"]
        {
            assert_eq!(one(text).vhost, "/", "{text}");
        }
        assert_eq!(one("amqp://h/a%2Fb").vhost, "a/b");
    }

    #[test]
    fn ipv6_literal_is_the_host() {
        let uri = one("amqps://[2001:db8::7]:5673/v");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("2001:db8::7", 5673));
        assert_eq!(one("amqp://u:p@[::1]").authority.host, "::1");
        let nodes = amqp_nodes("amqp://u:p@[::1]/v").unwrap();
        assert_eq!(nodes.nodes()[0].address().unwrap().as_str(), "amqp://[::1]:5672");
    }

    #[test]
    fn connection_string_of_the_cluster_operator_is_accepted() {
        let uri = one("amqp://default_user_x:pa-_55@rabbit.ns.svc:5672/");
        assert_eq!(uri.vhost, "/");
        assert_eq!(uri.authority.userinfo.username, "default_user_x");
    }

    #[test]
    fn list_keeps_order_and_each_elements_own_parts() {
        let nodes = amqp_nodes("amqps://u:p@a/v?heartbeat=3&channel_max=7, amqp://b:1").unwrap();
        let [first, second] = nodes.nodes() else { panic!("{nodes:?}") };
        assert_eq!(first.uri.query.heartbeat, Some(3));
        assert_eq!(first.uri.query.channel_max, Some(7));
        assert_eq!(first.uri.authority.port, 5671);
        assert!(first.has_credentials && !second.has_credentials);
        assert_eq!(second.uri.authority.userinfo, AMQPUserInfo::default());
        let external = one("amqps://a/?auth_mechanism=EXTERNAL").query.auth_mechanism;
        assert_eq!(external, Some(SASLMechanism::External));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("amqp://a,", "empty element"),
            (",amqp://a", "empty element"),
            ("amqp://a,,amqp://b", "empty element"),
            ("amqp://a,b:5672", "each element"),
            ("amqp://u:p,w@a", "each element"),
            ("http://a", "must begin with"),
            ("amqp://", "must be an AMQP URL"),
            ("amqp://u:p@", "must be an AMQP URL"),
            ("amqp://u:p#w@a", "unencoded delimiter"),
            ("amqp://u:5/w@a", "unencoded delimiter"),
            ("amqp://u:5?w@a", "unencoded delimiter"),
            ("amqp://u:a@b:5/w@h", "unencoded delimiter"),
            ("amqp://::1", "in brackets"),
            ("amqp://[::1", "must be an AMQP URL"),
            ("amqp://[fe80::1%25eth0]", "invalid IPv6"),
            ("amqp://a:0", "a port"),
            ("amqp://a:65536", "a port"),
            ("amqp://a b", "must be an AMQP URL"),
            ("amqp://a/%ff", "not UTF-8"),
            ("amqp://a?heartbeat=x", "in its query"),
            ("amqp://a?frame_max=100", "at least 8192"),
        ] {
            let error = amqp_nodes(text).map(|_| ()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let nodes = amqp_nodes("amqp://u:s3cret@a/s3cret").unwrap();
        assert!(!format!("{nodes:?} {:?}", nodes.nodes()).contains("s3cret"));
    }

    proptest! {
        #[test]
        fn encoded_parts_come_back(user in ".+", password in ".*", vhost in ".{1,40}", port in 1u16..) {
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let (u, p, v) = (encode(&user), encode(&password), encode(&vhost));
            let uri = one(&format!("amqp://{u}:{p}@host:{port}/{v}"));
            prop_assert_eq!(uri.authority.userinfo, AMQPUserInfo { username: user, password });
            prop_assert_eq!((uri.vhost, uri.authority.port), (vhost, port));
        }

        #[test]
        fn no_text_panics(text in "(amqps?://)?[ -~é]{0,40}") {
            let _ = amqp_nodes(&text);
        }
    }
}
