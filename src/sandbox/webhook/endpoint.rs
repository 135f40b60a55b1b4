//! The URL that is called, and one call of it.

use std::{error::Error, io, time::Duration};

use reqwest::{
    Client,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    redirect,
};
use serde::Serialize;
use url::Url;

use crate::{error_chain, tls};

/// The header that carries the shared secret.
const SECRET: HeaderName = HeaderName::from_static("x-webhook-secret");

/// The time limit of one call.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A URL that the sandbox calls when a session ends, as the platform's webhook does.
///
/// It has no `Debug`: the URL may hold a secret, too.
#[derive(Clone)]
pub struct Webhook {
    client: Client,
    url: Url,
    secret: Option<HeaderValue>,
}

/// Why a call failed. Quotes nothing of the URL, the secret or the answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WebhookError {
    #[error("the receiver answered with status {0}")]
    Status(u16),
    #[error("the receiver did not answer in time")]
    Timeout,
    #[error("{0}")]
    Connection(String),
}

impl WebhookError {
    /// The status of the answer, if there was one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(*status),
            Self::Timeout | Self::Connection(_) => None,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ended<'a> {
    session_id: &'a str,
}

impl Webhook {
    /// Calls `url`, with `secret` in the header `X-Webhook-Secret` if there is one.
    ///
    /// # Errors
    /// If the URL or the secret is invalid, or TLS cannot be set up. Says why, without the value.
    pub fn new(url: &str, secret: Option<&str>) -> io::Result<Self> {
        let invalid = |message| io::Error::new(io::ErrorKind::InvalidInput, message);
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| invalid("the webhook URL must be an http or https URL with a host"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(
                "the webhook URL must not contain a user or password; use the webhook secret",
            ));
        }
        let secret = secret.map(header).transpose().map_err(invalid)?;
        let client = client(url.scheme() == "https")
            .map_err(|error| invalid(tls::explain(&error).unwrap_or("TLS cannot be set up")))?;
        Ok(Self { client, url, secret })
    }

    /// Calls the URL once, and returns the status of a successful answer. Does not read its body.
    pub(super) async fn call(&self, session_id: &str) -> Result<u16, WebhookError> {
        // Cannot fail: the body is a map with text keys and text.
        let body = serde_json::to_vec(&Ended { session_id }).unwrap_or_default();
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(TIMEOUT)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        if let Some(secret) = &self.secret {
            request = request.header(SECRET, secret);
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Ok(answer.status().as_u16()),
            Ok(answer) => Err(WebhookError::Status(answer.status().as_u16())),
            Err(error) if error.is_timeout() => Err(WebhookError::Timeout),
            Err(error) => Err(WebhookError::Connection(explain(&error))),
        }
    }
}

/// A receiver compares bytes, and libraries differ in how they decode others than these.
fn header(secret: &str) -> Result<HeaderValue, &'static str> {
    let is_printable = !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic());
    let header = HeaderValue::from_str(secret).ok().filter(|_| is_printable);
    let mut header =
        header.ok_or("the webhook secret must consist of printable ASCII characters, no spaces")?;
    header.set_sensitive(true);
    Ok(header)
}

fn client(has_tls: bool) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("handoff-sandbox/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        // Following a redirect would send the secret to another host: reqwest 0.13 removes only the
        // headers that it knows to be secret, such as Authorization.
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        // A call is rare, and a connection that the receiver has closed would cost it a retry.
        .pool_max_idle_per_host(0);
    // Without TLS, a host without a certificate store must not fail.
    if has_tls { builder } else { builder.tls_certs_only([]) }.build()
}

fn explain(error: &reqwest::Error) -> String {
    let error: &(dyn Error + 'static) = error;
    match (tls::explain(error), error_chain::find::<io::Error>(error)) {
        (Some(explanation), _) => explanation.to_owned(),
        (None, Some(error)) => tls::explain_io(error),
        (None, None) => "the connection failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str, secret: Option<&str>) -> String {
        Webhook::new(url, secret).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn url_must_be_http_and_hold_no_credentials() {
        for url in [
            "http://127.0.0.1:1/a?b=c",
            "https://receiver.example",
            "HTTP://[::1]/webhook",
            "http://receiver/x#y",
        ] {
            assert_eq!(error(url, Some("s3cret-~!")), "");
        }
        for url in ["", "webhook", "/webhook", "ftp://host/", "http://", "file:///etc/passwd"] {
            assert!(error(url, None).contains("http or https URL"), "{url}");
        }
        for url in ["http://user:hunter2@host/", "https://hunter2@host/", "http://:hunter2@host/"] {
            let error = error(url, None);
            assert!(error.contains("user or password") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secret_must_be_printable() {
        for secret in ["", "hunter 2", " hunter2", "hunter2\n", "hünter2", "hunter2\u{7f}"] {
            let error = error("http://host/", Some(secret));
            assert!(error.contains("printable") && !error.contains("unter"), "{error}");
        }
    }
}
