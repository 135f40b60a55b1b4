//! From parsed rows to the settings of each subsystem, with the checks across settings.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use url::Url;

use super::{
    amqp::{amqp_nodes, amqps_nodes},
    amqp_source::AmqpSource,
    client_identity::ClientIdentity,
    host::is_loopback,
    parser::{ConfigErrors, Parser},
    proxy::Route,
    raw::{BrokerFlags, HealthcheckFlags, LogFlags, RawSettings, RunFlags},
    redis_modes::redis,
    setting::{Source, Spec},
    settings::{
        BrokerSettings, CacheSettings, Flow, LogSettings, PlatformSettings, Settings,
        WorkerSettings,
    },
    table,
    values::MAX_NAME,
    watched::{NamedFile, Watched},
};
use crate::retry::RetryDelay;

/// Half of RabbitMQ's default `consumer_timeout`, 30 minutes.
const HOLD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Makes a struct from fields that are each an option; `None` if one of them is.
///
/// All fields are parsed before any `?`, so that each error is reported. A field may use the options
/// above it.
macro_rules! assemble {
    ($type:ident { $($field:ident $(: $value:expr)?,)+ }) => {{
        $($(let $field = $value;)?)+
        Some($type { $($field: $field?,)+ })
    }};
}

impl Settings {
    /// Parses the settings of `handoff run`.
    ///
    /// # Errors
    /// Every configuration error.
    pub fn parse(flags: &RunFlags) -> Result<Self, ConfigErrors> {
        Parser::run(&flags.0, settings)
    }
}

impl BrokerSettings {
    /// The default settings, whatever the environment says.
    ///
    /// # Errors
    /// A default does not parse, which is a bug in the table.
    pub(crate) fn defaults() -> Result<Self, ConfigErrors> {
        Parser::run(&RawSettings::defaults(), broker)
    }

    /// Parses the settings of commands that connect to RabbitMQ alone.
    pub(crate) fn parse(flags: &BrokerFlags) -> Result<(Self, LogSettings), ConfigErrors> {
        Parser::run(&flags.0, |parser| {
            let broker = broker(parser);
            broker.zip(log(parser))
        })
    }

    /// Parses the same settings, and the default workflow.
    pub(crate) fn parse_with_workflow(
        flags: &BrokerFlags,
    ) -> Result<(Self, LogSettings, Option<String>), ConfigErrors> {
        Parser::run(&flags.0, |parser| {
            let (broker, log) = (broker(parser), log(parser));
            let workflow = parser.optional(&table::IDV_WORKFLOW_ID);
            Some((broker?, log?, workflow?))
        })
    }
}

/// Parses where a worker of this host serves its probes.
pub(crate) fn parse_http_addr(flags: &HealthcheckFlags) -> Result<SocketAddr, ConfigErrors> {
    Parser::run(&flags.0, |parser| parser.value(&table::HTTP_ADDR))
}

impl LogSettings {
    /// Parses the settings of commands that only log.
    pub(crate) fn parse(flags: &LogFlags) -> Result<Self, ConfigErrors> {
        Parser::run(&flags.0, log)
    }
}

fn settings(parser: &mut Parser<'_>) -> Option<Settings> {
    let flow = parser.value(&table::IDV_FLOW);
    let token_ttl = parser.value(&table::IDV_TOKEN_TTL);
    assemble!(Settings {
        platform: platform(parser, flow, token_ttl),
        broker: broker(parser),
        cache: cache(parser, flow, token_ttl),
        worker: worker(parser),
        log: log(parser),
    })
}

fn platform(
    parser: &mut Parser<'_>,
    flow: Option<Flow>,
    token_ttl: Option<Duration>,
) -> Option<PlatformSettings> {
    let allow_http = parser.value(&table::IDV_ALLOW_HTTP);
    let url = parser.value(&table::IDV_URL);
    let public_url = parser.optional(&table::IDV_PUBLIC_URL);
    // If HANDOFF_IDV_ALLOW_HTTP is invalid, that error is enough.
    if allow_http == Some(false) {
        check_encrypted(parser, &table::IDV_URL.spec, url.as_ref());
        let public_url = public_url.as_ref().and_then(Option::as_ref);
        check_encrypted(parser, &table::IDV_PUBLIC_URL.spec, public_url);
    }
    let route = url.as_ref().and_then(|url| route(parser, url));
    assemble!(PlatformSettings {
        flow,
        route,
        public_url,
        url,
        api_key: parser.watched(&table::IDV_API_KEY),
        token_ttl,
        timeout: parser.value(&table::IDV_TIMEOUT),
        rate_limit: parser.optional(&table::IDV_RATE_LIMIT),
    })
}

/// The route to the platform. An invalid proxy is an error, not a direct connection.
fn route(parser: &mut Parser<'_>, url: &Url) -> Option<Route> {
    Route::from_env(url).map_err(|(variable, why)| parser.error(variable, why)).ok()
}

fn check_encrypted(parser: &mut Parser<'_>, spec: &Spec, url: Option<&Url>) {
    if url.is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
        parser.reject(
            spec,
            "is plain http, which exposes the API key and every link to the network; use https, or \
             set HANDOFF_IDV_ALLOW_HTTP=true",
        );
    }
}

fn broker(parser: &mut Parser<'_>) -> Option<BrokerSettings> {
    assemble!(BrokerSettings {
        nodes: amqp_source(parser),
        queue: parser.value(&table::QUEUE),
        request_exchange: parser.value(&table::REQUEST_EXCHANGE),
        event_exchange: parser.value(&table::EVENT_EXCHANGE),
        declare: parser.value(&table::DECLARE_TOPOLOGY),
        retry_delays: retry_delays(parser, queue.as_deref()),
    })
}

fn amqp_source(parser: &mut Parser<'_>) -> Option<AmqpSource> {
    let certificate = parser.optional(&table::AMQP_CERT_FILE);
    let key = parser.optional(&table::AMQP_KEY_FILE);
    let is_given = |file: &Option<Option<_>>| file.as_ref().is_none_or(Option::is_some);
    let [has_certificate, has_key] = [&certificate, &key].map(is_given);
    let parse = if has_certificate || has_key { amqps_nodes } else { amqp_nodes };
    let nodes = parser.watched_as(&table::AMQP_URL, parse);
    if has_certificate != has_key {
        if has_certificate {
            let why = "needs the certificate's key: set HANDOFF_AMQP_KEY_FILE";
            parser.reject(&table::AMQP_CERT_FILE.spec, why);
        } else {
            let why = "needs the key's certificate: set HANDOFF_AMQP_CERT_FILE";
            parser.reject(&table::AMQP_KEY_FILE.spec, why);
        }
        return None;
    }
    let identity = match certificate?.zip(key?) {
        Some((certificate, key)) => client_identity(parser, certificate, key)?,
        None => Watched::default(),
    };
    Some(AmqpSource::new(nodes?, identity))
}

fn client_identity(
    parser: &mut Parser<'_>,
    certificate: PathBuf,
    key: PathBuf,
) -> Option<Watched<Option<ClientIdentity>>> {
    let file = |path, spec: &Spec| NamedFile { path, variable: spec.variable(Source::Value) };
    let files =
        [file(certificate, &table::AMQP_CERT_FILE.spec), file(key, &table::AMQP_KEY_FILE.spec)];
    let identity = ClientIdentity::watch(files);
    let report = |errors: Vec<_>| {
        errors.iter().for_each(|(variable, why): &(String, String)| parser.error(variable, why));
    };
    identity.map_err(report).ok()
}

fn retry_delays(parser: &mut Parser<'_>, queue: Option<&str>) -> Option<Vec<RetryDelay>> {
    let delays = parser.value(&table::RETRY_DELAYS);
    let suffixes = delays.iter().flatten().map(|delay| ".retry.".len() + delay.name.len());
    // Without retry delays, because they are invalid, this is the longest.
    let longest = suffixes.chain([".ended".len()]).max().unwrap_or(0);
    if queue.is_some_and(|queue| queue.len() + longest > MAX_NAME) {
        let why = "is too long: the names of its retry queues exceed 255 bytes";
        parser.reject(&table::QUEUE.spec, why);
    }
    delays
}

fn cache(
    parser: &mut Parser<'_>,
    flow: Option<Flow>,
    token_ttl: Option<Duration>,
) -> Option<CacheSettings> {
    let session_ttl = parser.optional(&table::IDV_SESSION_TTL);
    assemble!(CacheSettings {
        redis: redis(parser),
        flow,
        link_min_life: link_min_life(parser, token_ttl, session_ttl.flatten()),
        session_ttl: session_ttl.and_then(|session_ttl| session_ttl.or(token_ttl)),
        token_ttl,
        key_prefix: parser.value(&table::KEY_PREFIX),
        seal_keys: parser.watched_optional(&table::CACHE_KEY).map(Option::unwrap_or_default),
        patience: parser.value(&table::REDIS_PATIENCE),
    })
}

fn link_min_life(
    parser: &mut Parser<'_>,
    token_ttl: Option<Duration>,
    session_ttl: Option<Duration>,
) -> Option<Duration> {
    let life = parser.value(&table::LINK_MIN_LIFE)?;
    if token_ttl.is_some_and(|ttl| life >= ttl) {
        parser.reject(&table::LINK_MIN_LIFE.spec, "must be less than HANDOFF_IDV_TOKEN_TTL");
    } else if session_ttl.is_some_and(|ttl| life >= ttl) {
        parser.reject(&table::LINK_MIN_LIFE.spec, "must be less than HANDOFF_IDV_SESSION_TTL");
    }
    Some(life)
}

fn worker(parser: &mut Parser<'_>) -> Option<WorkerSettings> {
    assemble!(WorkerSettings {
        workflow_id: parser.optional(&table::IDV_WORKFLOW_ID),
        concurrency: parser.value(&table::CONCURRENCY),
        retry_budget: parser.value(&table::RETRY_BUDGET),
        max_message_bytes: parser.value(&table::MAX_MESSAGE_BYTES),
        http_addr: parser.value(&table::HTTP_ADDR),
        hold_limit: Some(HOLD_LIMIT),
        shutdown_grace: parser.value(&table::SHUTDOWN_GRACE),
    })
}

fn log(parser: &mut Parser<'_>) -> Option<LogSettings> {
    assemble!(LogSettings {
        directives: parser.value(&table::LOG),
        format: parser.optional(&table::LOG_FORMAT),
    })
}
