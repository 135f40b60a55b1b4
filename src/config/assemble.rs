//! From parsed rows to the settings of each subsystem, with the checks across settings.
//!
//! Every row is parsed before any `?`, so that each error is reported.

use std::time::Duration;

use url::Url;

use super::{
    parser::{ConfigErrors, Parser},
    raw::{BrokerFlags, LogFlags, RawSettings, RunFlags},
    setting::Spec,
    settings::{
        ApiKey, BrokerSettings, CacheSettings, LogSettings, PlatformSettings, Settings,
        WorkerSettings,
    },
    table,
    values::{MAX_NAME, is_loopback},
};

/// Half of RabbitMQ's default `consumer_timeout`, 30 minutes.
const HOLD_LIMIT: Duration = Duration::from_secs(15 * 60);

impl Settings {
    /// Parses the settings of `handoff run`.
    ///
    /// # Errors
    /// Every configuration error.
    pub fn parse(flags: &RunFlags) -> Result<Self, ConfigErrors> {
        let mut parser = Parser::new(&flags.0);
        let settings = settings(&mut parser);
        parser.finish(settings)
    }
}

impl BrokerSettings {
    /// The default settings, whatever the environment says.
    ///
    /// # Errors
    /// A default does not parse, which is a bug in the table.
    pub(crate) fn defaults() -> Result<Self, ConfigErrors> {
        let raw = RawSettings::defaults();
        let mut parser = Parser::new(&raw);
        let settings = broker(&mut parser);
        parser.finish(settings)
    }

    /// Parses the settings of commands that connect to RabbitMQ alone.
    ///
    /// # Errors
    /// Every configuration error.
    pub(crate) fn parse(flags: &BrokerFlags) -> Result<(Self, LogSettings), ConfigErrors> {
        let mut parser = Parser::new(&flags.0);
        let broker = broker(&mut parser);
        let log = log(&mut parser);
        parser.finish(broker.zip(log))
    }
}

impl LogSettings {
    /// Parses the settings of commands that only log.
    ///
    /// # Errors
    /// Every configuration error.
    pub(crate) fn parse(flags: &LogFlags) -> Result<Self, ConfigErrors> {
        let mut parser = Parser::new(&flags.0);
        let settings = log(&mut parser);
        parser.finish(settings)
    }
}

fn settings(parser: &mut Parser<'_>) -> Option<Settings> {
    let token_ttl = parser.value(&table::IDV_TOKEN_TTL);
    let platform = platform(parser, token_ttl);
    let broker = broker(parser);
    let cache = cache(parser, token_ttl);
    let worker = worker(parser);
    let log = log(parser);
    Some(Settings {
        platform: platform?,
        broker: broker?,
        cache: cache?,
        worker: worker?,
        log: log?,
    })
}

fn platform(parser: &mut Parser<'_>, token_ttl: Option<Duration>) -> Option<PlatformSettings> {
    let allow_http = parser.value(&table::IDV_ALLOW_HTTP);
    let url = parser.value(&table::IDV_URL);
    let public_url = parser.optional(&table::IDV_PUBLIC_URL);
    // If HANDOFF_IDV_ALLOW_HTTP is invalid, that error is enough.
    if allow_http == Some(false) {
        check_encrypted(parser, &table::IDV_URL.spec, url.as_ref());
        let public_url = public_url.as_ref().and_then(Option::as_ref);
        check_encrypted(parser, &table::IDV_PUBLIC_URL.spec, public_url);
    }
    let api_key = parser.value_and_file(&table::IDV_API_KEY);
    let timeout = parser.value(&table::IDV_TIMEOUT);
    let rate_limit = parser.optional(&table::IDV_RATE_LIMIT);
    let url = url?;
    let (value, file) = api_key?;
    Some(PlatformSettings {
        public_url: public_url?.unwrap_or_else(|| url.clone()),
        url,
        api_key: ApiKey { value, file },
        token_ttl: token_ttl?,
        timeout: timeout?,
        rate_limit: rate_limit?,
    })
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
    let url = parser.value(&table::AMQP_URL);
    let queue = parser.value(&table::QUEUE);
    let request_exchange = parser.value(&table::REQUEST_EXCHANGE);
    let event_exchange = parser.value(&table::EVENT_EXCHANGE);
    let declare = parser.value(&table::DECLARE_TOPOLOGY);
    let retry_delays = parser.value(&table::RETRY_DELAYS);
    let queue = queue?;
    let retry_delays = retry_delays?;
    let longest = retry_delays.iter().map(|delay| delay.name.len()).max().unwrap_or(0);
    if queue.len() + ".retry.".len() + longest > MAX_NAME {
        parser.reject(
            &table::QUEUE.spec,
            "is too long: the names of its retry queues exceed 255 bytes",
        );
    }
    Some(BrokerSettings {
        url: url?,
        queue,
        request_exchange: request_exchange?,
        event_exchange: event_exchange?,
        declare: declare?,
        retry_delays,
    })
}

fn cache(parser: &mut Parser<'_>, token_ttl: Option<Duration>) -> Option<CacheSettings> {
    let url = parser.value(&table::REDIS_URL);
    let key_prefix = parser.value(&table::KEY_PREFIX);
    let seal_keys = parser.optional(&table::CACHE_KEY);
    let link_min_life = parser.value(&table::LINK_MIN_LIFE);
    if let (Some(life), Some(ttl)) = (link_min_life, token_ttl)
        && life >= ttl
    {
        parser.reject(&table::LINK_MIN_LIFE.spec, "must be less than HANDOFF_IDV_TOKEN_TTL");
    }
    Some(CacheSettings {
        url: url?,
        key_prefix: key_prefix?,
        seal_keys: seal_keys?.unwrap_or_default(),
        link_min_life: link_min_life?,
    })
}

fn worker(parser: &mut Parser<'_>) -> Option<WorkerSettings> {
    let workflow_id = parser.optional(&table::IDV_WORKFLOW_ID);
    let concurrency = parser.value(&table::CONCURRENCY);
    let retry_budget = parser.value(&table::RETRY_BUDGET);
    let max_message_bytes = parser.value(&table::MAX_MESSAGE_BYTES);
    let http_addr = parser.value(&table::HTTP_ADDR);
    let shutdown_grace = parser.value(&table::SHUTDOWN_GRACE);
    Some(WorkerSettings {
        workflow_id: workflow_id?,
        concurrency: concurrency?,
        retry_budget: retry_budget?,
        max_message_bytes: max_message_bytes?,
        http_addr: http_addr?,
        hold_limit: HOLD_LIMIT,
        shutdown_grace: shutdown_grace?,
    })
}

fn log(parser: &mut Parser<'_>) -> Option<LogSettings> {
    let directives = parser.value(&table::LOG);
    let format = parser.optional(&table::LOG_FORMAT);
    Some(LogSettings { directives: directives?, format: format? })
}
