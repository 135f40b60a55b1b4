//! Typed settings: what `handoff` can be told, read from flags and environment variables.
//!
//! All mistakes are found in one go and reported by the name of the variable, never by value, before
//! anything is connected. The settings are those of the reference, section "Settings".

mod parser;
mod table;
mod units;
mod values;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::{SecretBox, SecretString};
use url::Url;

pub use self::{
    table::{BrokerFlags, DEMO_LOG, DEMO_WORKFLOW, DemoFlags, LogFlags, RawSettings, RunFlags},
    units::{parse_duration, parse_rate},
    values::{is_header_value, is_loopback, read_api_key},
};
use crate::retry::{RetryDelay, RetryPolicy};

/// What `handoff run` needs to know.
#[derive(Debug)]
pub struct Settings {
    /// The platform and the links that lead to it.
    pub platform: PlatformSettings,
    /// RabbitMQ and the names on it.
    pub broker: BrokerSettings,
    /// Redis and what is kept there.
    pub cache: CacheSettings,
    /// The worker itself.
    pub worker: WorkerSettings,
    /// Logs.
    pub log: LogSettings,
}

/// The platform: where it is, how it knows us, what is asked of it.
#[derive(Debug)]
pub struct PlatformSettings {
    /// Base URL of the two calls; a path prefix is kept.
    pub url: Url,
    /// Base URL of the links people open; a path prefix is kept.
    pub public_url: Url,
    /// The API key.
    pub api_key: ApiKey,
    /// Life asked for each token: whole seconds, at least one.
    pub token_ttl: Duration,
    /// Limit of one call, from connect to last byte.
    pub timeout: Duration,
    /// Most calls of all replicas together.
    pub rate_limit: Option<RateLimit>,
}

/// So many calls in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many; at least one.
    pub count: u32,
    /// In a window of this length.
    pub per: Duration,
}

/// The API key and, if it came from a file, where from.
#[derive(Debug)]
pub struct ApiKey {
    /// The key as it is sent.
    pub value: SecretString,
    /// The file it was read from, where it is read again should the key be refused.
    pub file: Option<PathBuf>,
}

/// RabbitMQ: the address and the names.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// `amqp://` or `amqps://`.
    pub url: SecretString,
    /// The request queue; the retry and dead queues are named after it.
    pub queue: String,
    /// The exchange that requests are published to.
    pub request_exchange: String,
    /// The exchange that events are published to.
    pub event_exchange: String,
    /// Whether to declare exchanges and queues, or only check them.
    pub declare: bool,
    /// The retry queues, one delay after another.
    pub retry_delays: Vec<RetryDelay>,
}

/// Redis: the address, the key names, the seal.
#[derive(Debug)]
pub struct CacheSettings {
    /// `redis://` or `rediss://`.
    pub url: SecretString,
    /// First part of every key.
    pub key_prefix: String,
    /// Keys that seal values: the first seals, all open. None: values are stored as they are.
    pub seal_keys: Vec<SecretBox<[u8; 32]>>,
    /// Least life of a link that is handed out again.
    pub link_min_life: Duration,
}

/// The worker itself.
#[derive(Debug)]
pub struct WorkerSettings {
    /// Workflow for requests that name none.
    pub workflow_id: Option<String>,
    /// Requests in flight, and the prefetch.
    pub concurrency: u16,
    /// Retrying in process, per delivery.
    pub retry: RetryPolicy,
    /// Largest request body, in bytes.
    pub max_message_bytes: usize,
    /// Where the probes and metrics are served.
    pub http_addr: SocketAddr,
    /// Longest time from SIGTERM to exit.
    pub shutdown_grace: Duration,
    /// Longest time that a request is held while the platform does not take calls; then it goes back to
    /// RabbitMQ, which takes a consumer for dead that keeps a message for half an hour. Not a setting.
    pub hold_limit: Duration,
}

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// `tracing` filter directives.
    pub directives: String,
    /// Text or JSON; `None` means by whether stderr is a terminal.
    pub format: Option<LogFormat>,
}

/// The two forms of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Settings {
    /// Reads what `handoff run` was given.
    ///
    /// # Errors
    /// Every mistake there is, by the name of the variable.
    pub fn parse(given: &RunFlags) -> Result<Self, ConfigErrors> {
        let mut reader = parser::Parser::new(&given.0);
        let settings = parser::settings(&mut reader);
        reader.finish(settings)
    }
}

impl BrokerSettings {
    /// What holds when nothing is given, whatever the environment says.
    ///
    /// # Errors
    /// A default that is a mistake, which would be a slip in the table.
    pub fn defaults() -> Result<Self, ConfigErrors> {
        let given = RawSettings::defaults();
        let mut reader = parser::Parser::new(&given);
        let settings = parser::broker(&mut reader);
        reader.finish(settings)
    }

    /// Reads what a command was given that only speaks to RabbitMQ.
    ///
    /// # Errors
    /// Every mistake there is, by the name of the variable.
    pub fn parse(given: &BrokerFlags) -> Result<(Self, LogSettings), ConfigErrors> {
        let mut reader = parser::Parser::new(&given.0);
        let settings = parser::broker(&mut reader).zip(parser::log(&mut reader));
        reader.finish(settings)
    }
}

impl LogSettings {
    /// Reads what a command was given that only logs.
    ///
    /// # Errors
    /// Every mistake there is, by the name of the variable.
    pub fn parse(given: &LogFlags) -> Result<Self, ConfigErrors> {
        let mut reader = parser::Parser::new(&given.0);
        let settings = parser::log(&mut reader);
        reader.finish(settings)
    }
}

/// Everything that is wrong with the configuration. Holds names and remedies, no values.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a mistake:")?,
            n => write!(f, "the configuration has {n} mistakes:")?,
        }
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for ConfigErrors {}
