//! The configuration of a sandbox.

use std::{io, time::Duration};

use axum::http::HeaderValue;

use super::webhook::Webhook;
use crate::config::RateLimit;

/// The configuration of a sandbox.
///
/// [`Options::default`] is a platform that answers at once and never fails.
#[derive(Clone)]
pub struct Options {
    /// The expected `Authorization` header of a token call, byte for byte.
    ///
    /// A scheme, as in `ApiKey 123`, is part of it.
    pub api_key: String,
    /// The minimum latency of an API call.
    pub latency: Duration,
    /// The maximum that is added to the latency; uniformly distributed.
    pub jitter: Duration,
    /// The share of API calls that answer 503, from 0 to 1.
    pub failure_rate: f64,
    /// API calls beyond this limit answer 429 with `Retry-After`.
    ///
    /// A window opens with the first call after the previous window.
    /// Calls that a fault, a random failure or the limit itself answers do not count.
    pub rate_limit: Option<RateLimit>,
    /// The characters of tokens.
    pub token_alphabet: TokenAlphabet,
    /// Whether a session call with the same token and `Idempotency-Key`, or a deeplink call with the same key,
    /// returns the same session.
    ///
    /// Off by default, as the real platform is not known to do that.
    pub honour_idempotency_key: bool,
    /// How long a session lives after it was made, if that is less than its token: the lifetime of a workflow.
    pub session_lifetime: Option<Duration>,
    /// The path below which everything is served, such as `/idv`; empty for the root.
    pub path_prefix: String,
    /// The base URL of the one-call flow's links, shown on the index page, too, if it differs from the one in the
    /// `Host` header.
    pub public_url: Option<String>,
    /// Called when a session ends: finished, closed, or at the end of its lifetime.
    pub webhook: Option<Webhook>,
    /// Makes tokens, session ids, jitter and random failures reproducible.
    ///
    /// `None` seeds the generator from the operating system.
    pub seed: Option<u64>,
}

/// The characters of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenAlphabet {
    /// `tr-`, letters and digits, which survive any encoding mistake.
    #[default]
    Plain,
    /// Everything that wrong encoding breaks: spaces, `+`, `/`, `=`, `&`, `%`, `?`, `#`, quotes,
    /// markup, and letters beyond ASCII. Still a valid header value, as UTF-8.
    Hostile,
}

impl Options {
    /// The default API key. It is in the documentation, so it is no secret.
    pub const DEFAULT_API_KEY: &'static str = "sandbox-key";

    /// Checks the options, and normalizes the path prefix to the form `/idv`.
    ///
    /// # Errors
    /// Says which option is invalid, without its value.
    pub(crate) fn validated(mut self) -> io::Result<Self> {
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if !(0.0..=1.0).contains(&self.failure_rate) {
            return invalid("the failure rate must be from 0 to 1");
        }
        if HeaderValue::from_bytes(self.api_key.as_bytes()).is_err()
            || self.api_key.trim() != self.api_key
            || self.api_key.is_empty()
        {
            return invalid(
                "the API key must not be empty, contain control characters, or start or end with a space",
            );
        }
        let prefix = self.path_prefix.trim_matches('/');
        if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/".contains(&b)) {
            return invalid("the path prefix must consist of ASCII letters, digits and -._~/");
        }
        self.path_prefix = match prefix {
            "" => String::new(),
            prefix => format!("/{prefix}"),
        };
        Ok(self)
    }

    /// The base URL that people open, for a call or page that was addressed to `host`.
    pub(super) fn base_url(&self, host: Option<&str>) -> String {
        let base = self.public_url.clone().unwrap_or_else(|| {
            format!("http://{}{}", host.unwrap_or("127.0.0.1:8085"), self.path_prefix)
        });
        base.trim_end_matches('/').to_owned()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: Self::DEFAULT_API_KEY.to_owned(),
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            failure_rate: 0.0,
            rate_limit: None,
            token_alphabet: TokenAlphabet::Plain,
            honour_idempotency_key: false,
            session_lifetime: None,
            path_prefix: String::new(),
            public_url: None,
            webhook: None,
            seed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> io::Result<String> {
        let options = Options { path_prefix: text.to_owned(), ..Options::default() };
        options.validated().map(|options| options.path_prefix)
    }

    #[test]
    fn a_prefix_is_normalized() {
        assert_eq!(prefix("").unwrap(), "");
        assert_eq!(prefix("/").unwrap(), "");
        for text in ["idv", "/idv", "idv/", "/idv/"] {
            assert_eq!(prefix(text).unwrap(), "/idv");
        }
        assert_eq!(prefix("/a/b").unwrap(), "/a/b");
        assert!(prefix("/a b").is_err());
        assert!(prefix("/{a}").is_err());
    }

    #[test]
    fn invalid_options_are_rejected() {
        for rate in [-0.1, 1.1, f64::NAN] {
            assert!(Options { failure_rate: rate, ..Options::default() }.validated().is_err());
        }
        for key in ["", " a", "a\n"] {
            assert!(Options { api_key: key.to_owned(), ..Options::default() }.validated().is_err());
        }
    }
}
