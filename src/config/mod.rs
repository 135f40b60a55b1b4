//! Typed settings, parsed from flags and environment variables.
//!
//! All configuration errors are reported together, by variable name, never with the value, before
//! anything connects. `docs/reference/settings.md` describes each setting.

mod amqp;
mod amqp_source;
mod assemble;
mod client_identity;
mod host;
mod parser;
mod proxy;
mod raw;
mod redis;
mod redis_modes;
mod secret_file;
mod setting;
mod settings;
pub(crate) mod table;
mod units;
mod unknown;
mod urls;
mod values;
mod watched;

#[cfg(test)]
pub(crate) use self::{amqp::amqp_nodes, raw::RawSettings, redis::sentinel_nodes, setting::Spec};
pub use self::{
    amqp::{AmqpNode, AmqpNodes},
    amqp_source::AmqpSource,
    client_identity::ClientIdentity,
    parser::ConfigErrors,
    proxy::{Direct, Proxy, ProxyScheme, Route},
    raw::{BrokerFlags, DemoFlags, HealthcheckFlags, LogFlags, RunFlags},
    redis::{RedisMode, RedisNode, RedisNodes, RedisSettings, Sentinels},
    settings::{
        BrokerSettings, CacheSettings, Flow, LogFormat, LogSettings, PlatformSettings, RateLimit,
        Settings, WorkerSettings,
    },
    watched::Watched,
};
pub(crate) use self::{
    assemble::parse_http_addr,
    host::is_loopback,
    proxy::ignored_variables,
    raw::{DEMO_LOG, DEMO_WORKFLOW},
    secret_file::read_secret_file,
    units::{parse_duration, parse_rate},
    unknown::{UnknownVariable, unknown_variables},
    values::is_header_value,
    watched::watch_file,
};
