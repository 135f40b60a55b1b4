//! From text to types: every setting is read, every mistake is kept, none stops the reading.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use secrecy::SecretString;

use super::{
    ApiKey, BrokerSettings, CacheSettings, ConfigErrors, LogFormat, LogSettings, PlatformSettings,
    RateLimit, RawSettings, Settings, WorkerSettings,
    table::{SETTINGS, Setting},
    units::{parse_duration, parse_rate},
    values::{
        MAX_NAME, amqp_name, amqp_url, base_url, is_header_value, key_prefix, log_directives,
        positive_duration, read_secret_file, redis_url, retry_delays, seal_keys, whole_number,
        whole_seconds, yes_or_no,
    },
};
use crate::retry::RetryPolicy;

/// Half of what RabbitMQ grants a consumer by default.
const HOLD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// A setting that was given: its text, and where from.
struct Text {
    value: String,
    file: Option<PathBuf>,
}

/// Takes settings one by one and keeps the mistakes.
pub(super) struct Parser<'a> {
    given: &'a RawSettings,
    mistakes: Vec<String>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(given: &'a RawSettings) -> Self {
        Self { given, mistakes: Vec::new() }
    }

    /// The settings, if there was no mistake.
    pub(super) fn finish<T>(self, settings: Option<T>) -> Result<T, ConfigErrors> {
        match settings {
            Some(settings) if self.mistakes.is_empty() => Ok(settings),
            _ => Err(ConfigErrors(self.mistakes)),
        }
    }

    fn wrong(&mut self, name: &str, why: impl fmt::Display) {
        self.mistakes.push(format!("{name}: {why}"));
    }

    /// The text of a setting: `Ok(None)` where nothing was given and nothing holds by default.
    fn text(&mut self, name: &str) -> Result<Option<Text>, ()> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            self.wrong(name, "is not a setting"); // a slip in this file, seen by any test of it
            return Err(());
        };
        let given = self.given.find(setting);
        match given.as_slice() {
            [] => Ok(setting.default.map(|text| Text { value: text.to_owned(), file: None })),
            [(name, value)] => self.given_text(setting, name, value.clone().into_string().ok()),
            [(one, _), (other, _), ..] => {
                self.wrong(one, format_args!("is given together with {other}; keep one of them"));
                Err(())
            }
        }
    }

    fn given_text(
        &mut self,
        setting: &Setting,
        name: &str,
        value: Option<String>,
    ) -> Result<Option<Text>, ()> {
        let why = match value {
            None => "is not valid UTF-8".to_owned(),
            Some(value) if value.is_empty() => {
                "is set but empty; give it a value, or unset it".to_owned()
            }
            Some(value) if name == setting.variable() => {
                return Ok(Some(Text { value, file: None }));
            }
            Some(path) => match read_secret_file(&path) {
                Ok(value) => return Ok(Some(Text { value, file: Some(path.into()) })),
                Err(why) => why,
            },
        };
        self.wrong(name, why);
        Err(())
    }

    /// Reads a setting that may be absent.
    fn optional<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Option<T>> {
        let Some(text) = self.text(name).ok()? else { return Some(None) };
        match read(&text.value) {
            Ok(value) => Some(Some(value)),
            Err(why) => {
                self.wrong(&format!("HANDOFF_{name}"), why);
                None
            }
        }
    }

    /// Reads a setting that must be there, by default or given.
    fn required<T, E: fmt::Display>(
        &mut self,
        name: &str,
        what: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.optional(name, read)?;
        if value.is_none() {
            self.wrong(&format!("HANDOFF_{name}"), format_args!("is required: {what}"));
        }
        value
    }

    /// Reads a setting that has a default.
    fn value<T, E: fmt::Display>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.required(name, "it has no default", read)
    }
}

/// All settings of `handoff run`.
pub(super) fn settings(reader: &mut Parser<'_>) -> Option<Settings> {
    // Each part is read before any is given up, so that every mistake is found.
    let token_ttl = reader.value("IDV_TOKEN_TTL", whole_seconds);
    let platform = platform(reader, token_ttl);
    let broker = broker(reader);
    let cache = cache(reader, token_ttl);
    let worker = worker(reader);
    let log = log(reader);
    Some(Settings {
        platform: platform?,
        broker: broker?,
        cache: cache?,
        worker: worker?,
        log: log?,
    })
}

fn platform(reader: &mut Parser<'_>, token_ttl: Option<Duration>) -> Option<PlatformSettings> {
    let allow_http = reader.value("IDV_ALLOW_HTTP", yes_or_no);
    let base = |text: &str| base_url(text, allow_http.unwrap_or(true));
    let url = reader.required(
        "IDV_URL",
        "the platform's base URL, such as https://idv.example.com",
        base,
    );
    let public_url = reader.optional("IDV_PUBLIC_URL", base);
    let api_key = api_key(reader);
    let timeout = reader.value("IDV_TIMEOUT", positive_duration);
    let rate_limit = reader.optional("IDV_RATE_LIMIT", |text| {
        parse_rate(text).map(|(count, per)| RateLimit { count, per })
    });
    let url = url?;
    Some(PlatformSettings {
        public_url: public_url?.unwrap_or_else(|| url.clone()),
        url,
        api_key: api_key?,
        token_ttl: token_ttl?,
        timeout: timeout?,
        rate_limit: rate_limit?,
    })
}

fn api_key(reader: &mut Parser<'_>) -> Option<ApiKey> {
    let Some(text) = reader.text("IDV_API_KEY").ok()? else {
        reader.wrong(
            "HANDOFF_IDV_API_KEY",
            "is required: the platform's API key, or HANDOFF_IDV_API_KEY_FILE",
        );
        return None;
    };
    if !is_header_value(&text.value) {
        reader.wrong(
            "HANDOFF_IDV_API_KEY",
            "cannot be sent as a header: it holds a control character, or a space at its ends",
        );
        return None;
    }
    Some(ApiKey { value: SecretString::from(text.value), file: text.file })
}

/// The settings of whoever speaks to RabbitMQ.
pub(super) fn broker(reader: &mut Parser<'_>) -> Option<BrokerSettings> {
    let url = reader.value("AMQP_URL", amqp_url);
    let queue = reader.value("QUEUE", amqp_name);
    let request_exchange = reader.value("REQUEST_EXCHANGE", amqp_name);
    let event_exchange = reader.value("EVENT_EXCHANGE", amqp_name);
    let declare = reader.value("DECLARE_TOPOLOGY", yes_or_no);
    let retry_delays = reader.value("RETRY_DELAYS", retry_delays);
    let (queue, retry_delays) = (queue?, retry_delays?);
    let longest = retry_delays.iter().map(|delay| delay.name().len()).max().unwrap_or(0);
    if queue.len() + ".retry.".len() + longest > MAX_NAME {
        reader.wrong("HANDOFF_QUEUE", "is too long: the names of its retry queues pass 255 bytes");
        return None;
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

fn cache(reader: &mut Parser<'_>, token_ttl: Option<Duration>) -> Option<CacheSettings> {
    let url = reader.value("REDIS_URL", redis_url);
    let key_prefix = reader.value("KEY_PREFIX", key_prefix);
    let seal_keys = reader.optional("CACHE_KEY", seal_keys);
    let link_min_life = reader.value("LINK_MIN_LIFE", |text| {
        let life = parse_duration(text)?;
        // Without a readable ttl there is nothing to compare with; its own mistake is told already.
        if token_ttl.is_some_and(|ttl| life >= ttl) {
            return Err("must be below HANDOFF_IDV_TOKEN_TTL".to_owned());
        }
        Ok(life)
    });
    Some(CacheSettings {
        url: url?,
        key_prefix: key_prefix?,
        seal_keys: seal_keys?.unwrap_or_default(),
        link_min_life: link_min_life?,
    })
}

fn worker(reader: &mut Parser<'_>) -> Option<WorkerSettings> {
    let workflow_id = reader.optional("IDV_WORKFLOW_ID", |text| match text.len() {
        1..=128 => Ok(text.to_owned()),
        _ => Err("must be 1 to 128 bytes long"),
    });
    let concurrency = reader.value("CONCURRENCY", |text| {
        whole_number(text, 1, 65_535).map(|n| u16::try_from(n).unwrap_or(u16::MAX))
    });
    let budget = reader.value("RETRY_BUDGET", parse_duration);
    let max_message_bytes = reader.value("MAX_MESSAGE_BYTES", |text| {
        // 128 MiB is the most RabbitMQ takes by default on any version.
        whole_number(text, 1, 128 << 20).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    });
    let http_addr = reader.value("HTTP_ADDR", |text| {
        SocketAddr::from_str(text)
            .map_err(|_| "must be an IP address and a port, such as 0.0.0.0:9464")
    });
    let shutdown_grace = reader.value("SHUTDOWN_GRACE", positive_duration);
    Some(WorkerSettings {
        workflow_id: workflow_id?,
        concurrency: concurrency?,
        retry: RetryPolicy::new(budget?),
        max_message_bytes: max_message_bytes?,
        http_addr: http_addr?,
        hold_limit: HOLD_LIMIT,
        shutdown_grace: shutdown_grace?,
    })
}

/// What is logged, and how.
pub(super) fn log(reader: &mut Parser<'_>) -> Option<LogSettings> {
    let directives = reader.value("LOG", log_directives);
    let format = reader.optional("LOG_FORMAT", |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be text or json"),
    });
    Some(LogSettings { directives: directives?, format: format? })
}
