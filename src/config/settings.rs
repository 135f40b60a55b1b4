//! The parsed settings of each subsystem.

use std::{net::SocketAddr, time::Duration};

use secrecy::{SecretBox, SecretString};
use url::Url;

use super::{amqp_source::AmqpSource, proxy::Route, redis::RedisSettings, watched::Watched};
use crate::retry::RetryDelay;

/// All settings of `handoff run`.
#[derive(Debug)]
pub struct Settings {
    /// The platform and the links to it.
    pub platform: PlatformSettings,
    /// RabbitMQ.
    pub broker: BrokerSettings,
    /// Redis.
    pub cache: CacheSettings,
    /// The worker itself.
    pub worker: WorkerSettings,
    /// Logs.
    pub log: LogSettings,
}

/// How to call the platform.
#[derive(Debug)]
pub struct PlatformSettings {
    /// Base URL of the two calls; a path prefix is kept.
    pub url: Url,
    /// How it makes a link.
    pub flow: Flow,
    /// How to reach it: directly or through a proxy.
    pub route: Route,
    /// Base URL of the links that people open, if it differs; a path prefix is kept.
    pub public_url: Option<Url>,
    /// The API key.
    pub api_key: Watched<SecretString>,
    /// Lifetime to request for each token, or for each link of the one-call flow: whole seconds, at least one.
    pub token_ttl: Duration,
    /// Time limit of one call, from connect to last byte.
    pub timeout: Duration,
    /// Maximum rate of calls, shared by all replicas.
    pub rate_limit: Option<RateLimit>,
}

/// How the platform makes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Two calls: for a token and, with it, for a session.
    Token,
    /// One call, whose answer is the link.
    Deeplink,
}

/// At most `count` calls in each window of length `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// At least one.
    pub count: u32,
    /// Greater than zero.
    pub per: Duration,
}

/// How to connect to RabbitMQ, and the names of exchanges and queues.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// The nodes, each `amqp://` or `amqps://`, and the client certificate.
    pub nodes: AmqpSource,
    /// The request queue; the retry and dead queues are named after it.
    pub queue: String,
    /// The exchange that requests are published to.
    pub request_exchange: String,
    /// The exchange that events are published to.
    pub event_exchange: String,
    /// Whether to declare exchanges and queues, or only check that they exist.
    pub declare: bool,
    /// The delays of the retry queues, in order.
    pub retry_delays: Vec<RetryDelay>,
}

/// How to connect to Redis, and how to store values there.
#[derive(Debug)]
pub struct CacheSettings {
    /// Where it is.
    pub redis: RedisSettings,
    /// Prefix of every key.
    pub key_prefix: String,
    /// Keys that seal values: the first seals, all open. If empty, values are stored in the clear.
    pub seal_keys: Watched<Vec<SecretBox<[u8; 32]>>>,
    /// How the platform makes a link: each flow has keys of its own.
    pub flow: Flow,
    /// Lifetime that is requested for tokens.
    pub token_ttl: Duration,
    /// Lifetime of sessions.
    pub session_ttl: Duration,
    /// Minimum remaining life of a link that is reused.
    pub link_min_life: Duration,
    /// How long requests wait for Redis before they are served without it.
    pub patience: Duration,
}

/// How the worker runs.
#[derive(Debug)]
pub struct WorkerSettings {
    /// Workflow for requests that name none.
    pub workflow_id: Option<String>,
    /// Maximum number of requests in flight; also the prefetch count.
    pub concurrency: u16,
    /// How long after its first try a delivery may still start a retry in process.
    pub retry_budget: Duration,
    /// Maximum size of a request body, in bytes.
    pub max_message_bytes: usize,
    /// Address of the probes and metrics.
    pub http_addr: SocketAddr,
    /// Maximum time from SIGTERM to exit.
    pub shutdown_grace: Duration,
    /// How long a request is held at most while the platform is paused. After that the worker returns
    /// it to RabbitMQ, which closes the channel of a consumer that keeps a delivery for 30 minutes.
    /// Not a setting; a field so that tests can shorten it.
    pub hold_limit: Duration,
}

/// What is logged, and in which format.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// `tracing` filter directives.
    pub directives: String,
    /// `None`: text if stderr is a terminal, else JSON.
    pub format: Option<LogFormat>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
