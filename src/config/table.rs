//! The settings, one row each, in the order of the help text.
//!
//! To add a setting: add a row here, a field in `settings.rs`, and a line in `assemble.rs`. The flag, the
//! environment variable and the help text come from the row; its doc comment is the help text.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::{SecretBox, SecretString};
use url::Url;

use super::{
    amqp::{AmqpNodes, amqp_nodes},
    redis::{self, RedisMode, RedisNodes},
    setting::{
        OptionalSetting,
        Scope::{Broker, Logging, Platform, Probes, Worker},
        Setting, Spec,
    },
    settings::{Flow, LogFormat, RateLimit},
    units::{parse_duration, parse_rate, positive_duration, redis_patience, whole_seconds},
    values,
};
use crate::retry::RetryDelay;

/// Declares each row as a static, and lists all rows in [`ALL`].
macro_rules! settings {
    ($(
        $(#[doc = $help:literal])+
        $name:ident: $type:ty = ($scope:expr, $value_name:literal)
            $(.$method:ident($($argument:expr),*))+;
    )*) => {
        $(
            $(#[doc = $help])+
            pub(crate) static $name: $type =
                Spec::new(stringify!($name), $scope, $value_name, concat!($($help),+))
                    $(.$method($($argument),*))+;
        )*

        /// Every setting.
        pub(super) static ALL: &[&Spec] = &[$(&$name.spec),*];
    };
}

settings! {
    /// Base URL of the identity-verification platform (required)
    IDV_URL: Setting<Url> = (Platform, "URL")
        .required("the platform's base URL, such as https://idv.example.com", values::base_url);

    /// Base URL of the links that people open [default: the value of --idv-url]
    IDV_PUBLIC_URL: OptionalSetting<Url> = (Platform, "URL").optional(values::base_url);

    /// API key, sent verbatim as the Authorization header (required)
    IDV_API_KEY: Setting<SecretString> = (Platform, "KEY").secret()
        .required("the platform's API key, or HANDOFF_IDV_API_KEY_FILE", values::api_key);

    /// Workflow of requests and endings that name none
    IDV_WORKFLOW_ID: OptionalSetting<String> = (Worker, "ID").optional(values::workflow_id);

    /// How the platform makes a link: by a call for a token and one for a session, or by one call
    IDV_FLOW: Setting<Flow> = (Platform, "token|deeplink").default("token", values::flow);

    /// Lifetime to request for each token or deeplink, in whole seconds
    IDV_TOKEN_TTL: Setting<Duration> = (Worker, "DURATION").default("1h", whole_seconds);

    /// Lifetime of sessions, if their workflow ends them sooner than their token [default: --idv-token-ttl]
    IDV_SESSION_TTL: OptionalSetting<Duration> = (Worker, "DURATION").optional(positive_duration);

    /// Time limit of one platform call, from connect to last byte
    IDV_TIMEOUT: Setting<Duration> = (Worker, "DURATION").default("10s", positive_duration);

    /// Maximum rate of platform calls, shared by all replicas, such as 1000/1m [default: off]
    IDV_RATE_LIMIT: OptionalSetting<RateLimit> = (Worker, "N/DURATION").optional(parse_rate);

    /// Allow plain http to a platform on another machine
    IDV_ALLOW_HTTP: Setting<bool> = (Platform, "BOOL").switch().default("false", values::boolean);

    /// RabbitMQ URL, or one for each node, separated by commas; amqps:// for TLS
    AMQP_URL: Setting<AmqpNodes> = (Broker, "URL").secret()
        .default("amqp://guest:guest@127.0.0.1:5672/%2f", amqp_nodes);

    /// PEM file with the client certificate for RabbitMQ, which needs amqps:// URLs; also the login of a URL without user and password
    AMQP_CERT_FILE: OptionalSetting<PathBuf> = (Broker, "PATH").optional(values::path);

    /// PEM file with the key of --amqp-cert-file
    AMQP_KEY_FILE: OptionalSetting<PathBuf> = (Broker, "PATH").optional(values::path);

    /// Redis URL, or in cluster mode those of some nodes, separated by commas; rediss:// for TLS
    REDIS_URL: Setting<RedisNodes> = (Worker, "URL").secret()
        .default("redis://127.0.0.1:6379/0", redis::one_server);

    /// What the Redis URL leads to: one server, nodes of a Redis Cluster, or what sentinels watch
    REDIS_MODE: Setting<RedisMode> = (Worker, "single|cluster|sentinel")
        .default("single", redis::redis_mode);

    /// Sentinels, as redis:// or rediss:// URLs separated by commas (required in sentinel mode)
    REDIS_SENTINELS: OptionalSetting<RedisNodes> = (Worker, "LIST").secret()
        .optional(redis::sentinel_nodes);

    /// Name by which the sentinels know the primary [default: mymaster]
    REDIS_SENTINEL_SERVICE: OptionalSetting<String> = (Worker, "NAME")
        .optional(redis::sentinel_service);

    /// Request queue; the names of its retry, dead and ended queues begin with it
    QUEUE: Setting<String> = (Broker, "NAME").default("verification.requested", values::amqp_name);

    /// Exchange that requests are published to
    REQUEST_EXCHANGE: Setting<String> = (Broker, "NAME").default("verification", values::amqp_name);

    /// Exchange that events are published to
    EVENT_EXCHANGE: Setting<String> = (Broker, "NAME").default("handoff", values::amqp_name);

    /// Declare exchanges and queues; with false, only check that they exist
    DECLARE_TOPOLOGY: Setting<bool> = (Broker, "BOOL").switch().default("true", values::boolean);

    /// Maximum number of requests in flight; also the prefetch count
    CONCURRENCY: Setting<u16> = (Worker, "N").default("64", values::concurrency);

    /// Maximum time for in-process retries, per delivery
    RETRY_BUDGET: Setting<Duration> = (Worker, "DURATION").default("10s", parse_duration);

    /// Delays of the retry queues, in order
    RETRY_DELAYS: Setting<Vec<RetryDelay>> = (Broker, "LIST")
        .default("10s,1m,5m,15m", values::retry_delays);

    /// How long requests wait for a Redis that is unavailable, before they are served without it
    REDIS_PATIENCE: Setting<Duration> = (Worker, "DURATION").default("3s", redis_patience);

    /// Minimum remaining lifetime for a link to be reused; less than that of tokens and sessions
    LINK_MIN_LIFE: Setting<Duration> = (Worker, "DURATION").default("10m", parse_duration);

    /// Keys that encrypt the values in Redis, base64 of 32 bytes each: the first encrypts, all decrypt
    CACHE_KEY: OptionalSetting<Vec<SecretBox<[u8; 32]>>> = (Worker, "LIST").secret()
        .optional(values::seal_keys);

    /// Prefix of every Redis key
    KEY_PREFIX: Setting<String> = (Worker, "TEXT").default("handoff", values::key_prefix);

    /// Maximum size of a request body, in bytes
    MAX_MESSAGE_BYTES: Setting<usize> = (Worker, "N").default("65536", values::message_bytes);

    /// Address that serves /livez, /readyz and /metrics
    HTTP_ADDR: Setting<SocketAddr> = (Probes, "IP:PORT")
        .default("127.0.0.1:9464", values::socket_addr);

    /// Maximum time from SIGTERM to exit
    SHUTDOWN_GRACE: Setting<Duration> = (Worker, "DURATION").default("25s", positive_duration);

    /// Log filter, as tracing directives
    LOG: Setting<String> = (Logging, "DIRECTIVES").default("info", values::log_directives);

    /// Format of log lines [default: text on a terminal, else json]
    LOG_FORMAT: OptionalSetting<LogFormat> = (Logging, "text|json").optional(values::log_format);
}
