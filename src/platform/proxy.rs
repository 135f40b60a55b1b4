//! What a proxy did instead of connecting the worker to the platform.

use std::{error::Error, fmt, io};

use crate::{config::Proxy, error_chain, tls};

/// Why a proxy made no connection to the platform, and how to fix it. Follows the proxy's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyProblem {
    /// No connection to the proxy; says why.
    Unreachable(&'static str),
    /// No TLS connection to the proxy; says why.
    Tls(&'static str),
    CredentialsMissing,
    CredentialsRefused,
    /// The answer to CONNECT was neither 200 nor 407.
    Refused,
    /// The code of a SOCKS5 reply.
    SocksReply(&'static str),
    BrokeOff,
    UnexpectedAnswer,
    TooLong,
    NameUnknownHere,
    TimedOut,
}

impl fmt::Display for ProxyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable(why) => {
                return write!(
                    f,
                    "cannot be reached ({why}): check its host and port, and that it is running"
                );
            }
            Self::Tls(why) => return write!(f, "cannot be reached over TLS: {why}"),
            Self::CredentialsMissing => {
                "requires a user and a password: put them into its URL, percent-encoded"
            }
            Self::CredentialsRefused => {
                "refused its user or password: check them in its URL, where they are percent-encoded"
            }
            Self::Refused => {
                "did not connect to the platform (no status 200): check the scheme of its URL, that its rules \
                 allow the platform's host and port, and that it can reach the platform; `handoff doctor` \
                 shows its status"
            }
            Self::SocksReply(reply) => {
                return write!(
                    f,
                    "did not connect to the platform ({reply}): check that its rules allow the platform's \
                     host and port, and that it can reach the platform"
                );
            }
            Self::BrokeOff => {
                "closed the connection instead of connecting to the platform: check the scheme of its URL"
            }
            Self::UnexpectedAnswer => {
                "does not answer as a proxy of its scheme does: check scheme and port of its URL"
            }
            Self::TooLong => {
                "cannot be asked for the platform: user, password and the platform's host are too long for \
                 SOCKS5"
            }
            Self::NameUnknownHere => {
                "was not asked, because this machine cannot resolve the platform's host: with socks5h \
                 instead of socks5, the proxy resolves it"
            }
            Self::TimedOut => {
                "did not connect to the platform in time: check that it is running, and that it can reach \
                 the platform"
            }
        })
    }
}

impl ProxyProblem {
    /// The problem of a proxy that a failed call shows; `None` if the proxy is not at fault.
    pub(super) fn find(error: &reqwest::Error, proxy: &Proxy) -> Option<Self> {
        if !error.is_connect() {
            return None;
        }
        if error.is_timeout() {
            return Some(Self::TimedOut);
        }
        error_chain::chain(error).find_map(|error| Self::of(error, proxy))
    }

    /// Interprets an error of reqwest's connectors.
    ///
    /// hyper-util 0.1.21 exports neither its `TunnelError` nor its `SocksError` (not reported upstream), so
    /// their texts are compared. The tests meet each of them.
    fn of(error: &(dyn Error + 'static), proxy: &Proxy) -> Option<Self> {
        let text = error.to_string();
        let credentials = match proxy.credentials {
            Some(_) => Self::CredentialsRefused,
            None => Self::CredentialsMissing,
        };
        if let Some(text) = text.strip_prefix("tunnel error: ") {
            return Some(match text {
                "failed to create underlying connection" => {
                    let cause = error.source()?;
                    tls::explain(cause)
                        .map_or_else(|| Self::Unreachable(network_error(cause)), Self::Tls)
                }
                "proxy authorization required" => credentials,
                "unsuccessful" => Self::Refused,
                "io error establishing tunnel" | "unexpected end of file" => Self::BrokeOff,
                _ => Self::UnexpectedAnswer,
            });
        }
        if let Some(text) = text.strip_prefix("SOCKS error: ") {
            return Some(match text {
                // hyper-util 0.1.21 hides the cause (not reported upstream).
                "failed to create underlying connection" => {
                    Self::Unreachable("no TCP connection; `handoff doctor` shows why")
                }
                "io error during SOCKS handshake" => Self::BrokeOff,
                "failed serialize request" => Self::TooLong,
                "credentials not accepted"
                | "server does not support user/pass authentication"
                | "server implements authentication incorrectly" => credentials,
                _ => SOCKS_REPLIES
                    .iter()
                    .find(|reply| **reply == text)
                    .map_or(Self::UnexpectedAnswer, |reply| Self::SocksReply(reply)),
            });
        }
        (text == "error resolving for socks proxy").then_some(Self::NameUnknownHere)
    }
}

/// The replies of RFC 1928, as hyper-util writes them.
const SOCKS_REPLIES: [&str; 8] = [
    "general server failure",
    "connection not allowed",
    "network unreachable",
    "host unreachable",
    "connection refused",
    "ttl expired",
    "command not supported",
    "address type not supported",
];

/// Names the network error in a chain of sources.
fn network_error(error: &(dyn Error + 'static)) -> &'static str {
    const OTHER: &str = "the connection failed";
    let Some(error) = error_chain::find::<io::Error>(error) else { return OTHER };
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => "connection reset",
        io::ErrorKind::HostUnreachable => "host unreachable",
        io::ErrorKind::NetworkUnreachable => "network unreachable",
        io::ErrorKind::TimedOut => "no answer in time",
        _ if error_chain::is_unknown_host(error) => "the host was not found",
        _ => OTHER,
    }
}
