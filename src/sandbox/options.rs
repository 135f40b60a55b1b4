//! How a sandbox behaves from the start.

use std::{fmt, io, time::Duration};

use axum::http::HeaderValue;

/// How a sandbox behaves. [`Options::default`] is a platform that is fast and never fails.
#[derive(Clone)]
pub struct Options {
    /// What the `Authorization` header of a token call must hold, byte for byte: a scheme, such as
    /// in `ApiKey 123`, is part of it.
    pub api_key: String,
    /// How long each of the two calls takes at least.
    pub latency: Duration,
    /// At most so much is added to the latency of a call, evenly spread.
    pub jitter: Duration,
    /// The share of the two calls, from 0 to 1, that answer 503.
    pub failure_rate: f64,
    /// More calls than this answer 429 with `Retry-After`. Refused calls do not count.
    pub rate_limit: Option<RateLimit>,
    /// What tokens are made of.
    pub token_alphabet: TokenAlphabet,
    /// A session call repeated with the same token and `Idempotency-Key` answers the session it
    /// made. Off unless asked for: the real platform is not known to do that.
    pub honour_idempotency_key: bool,
    /// Everything is served below this path, such as `/idv`. Empty: at the root.
    pub path_prefix: String,
    /// The base URL people's devices reach it at, where that is not the address it listens on. It
    /// is only shown, on the index page.
    pub public_url: Option<String>,
    /// With a seed, tokens, session ids, jitter and failures come in the same order each time. Such
    /// tokens can be guessed, which is of no matter here.
    pub seed: Option<u64>,
}

/// So many calls in each window of time. A window opens with the first call after the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls of both kinds together.
    pub count: u32,
    /// How long a window is.
    pub per: Duration,
}

/// What tokens are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenAlphabet {
    /// `tr-` and letters and digits, which survive even careless encoding.
    #[default]
    Plain,
    /// Everything that careless encoding breaks: spaces, `+`, `/`, `=`, `&`, `%`, `?`, `#`, quotes,
    /// markup, letters beyond ASCII. Still a valid header value, as UTF-8.
    Hostile,
}

impl Options {
    /// The key that is asked for by default. No secret: it is in the documentation.
    pub const DEFAULT_API_KEY: &'static str = "sandbox-key";

    /// Brings the prefix into shape (`/idv`, without a slash at the end) and refuses what cannot
    /// work. [`Sandbox::start`](super::Sandbox::start) does this, too.
    ///
    /// # Errors
    /// A sentence that says what is wrong, without repeating it.
    pub fn checked(mut self) -> io::Result<Self> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if !(0.0..=1.0).contains(&self.failure_rate) {
            return refuse("the failure rate must be from 0 to 1");
        }
        if HeaderValue::from_bytes(self.api_key.as_bytes()).is_err()
            || self.api_key.trim() != self.api_key
            || self.api_key.is_empty()
        {
            return refuse(
                "the API key must be fit for a header: no control characters, no space at its ends",
            );
        }
        let prefix = self.path_prefix.trim_matches('/');
        if !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/".contains(&b)) {
            return refuse("the path prefix must be made of ASCII letters, digits and -._~/");
        }
        self.path_prefix = match prefix {
            "" => String::new(),
            prefix => format!("/{prefix}"),
        };
        Ok(self)
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
            path_prefix: String::new(),
            public_url: None,
            seed: None,
        }
    }
}

impl fmt::Debug for Options {
    /// Leaves the API key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("latency", &self.latency)
            .field("jitter", &self.jitter)
            .field("failure_rate", &self.failure_rate)
            .field("rate_limit", &self.rate_limit)
            .field("token_alphabet", &self.token_alphabet)
            .field("honour_idempotency_key", &self.honour_idempotency_key)
            .field("path_prefix", &self.path_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> io::Result<String> {
        let options = Options { path_prefix: text.to_owned(), ..Options::default() };
        options.checked().map(|options| options.path_prefix)
    }

    #[test]
    fn a_prefix_starts_with_a_slash_and_ends_without() {
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
    fn what_cannot_work_is_refused() {
        for rate in [-0.1, 1.1, f64::NAN] {
            assert!(Options { failure_rate: rate, ..Options::default() }.checked().is_err());
        }
        for key in ["", " a", "a\n"] {
            assert!(Options { api_key: key.to_owned(), ..Options::default() }.checked().is_err());
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        let options = Options { api_key: "k3y".to_owned(), ..Options::default() };
        assert!(!format!("{options:?}").contains("k3y"));
    }
}
