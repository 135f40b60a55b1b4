//! Single values: from text to type, with a sentence for whoever got it wrong, which never repeats it.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
    str::FromStr,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use deadpool_redis::redis::IntoConnectionInfo;
use secrecy::{SecretBox, SecretString};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::{Host, Url};

use super::units::{parse_duration, parse_whole};
use crate::retry::RetryDelay;

/// Longest time RabbitMQ keeps a message by TTL: 32 bits of milliseconds.
const MAX_QUEUE_TTL: Duration = Duration::from_millis(u32::MAX as u64);
/// The length of a name in AMQP 0-9-1, in bytes.
pub(super) const MAX_NAME: usize = 255;
/// Largest file that a secret is read from, in bytes.
const MAX_SECRET: u64 = 64 * 1024;
/// Smallest frame that every RabbitMQ accepts, in bytes.
const MIN_FRAME: u32 = 8_192;

pub(super) fn read_secret_file(path: impl AsRef<Path>) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| {
        // A slip such as /dev/zero has no end.
        file.take(MAX_SECRET + 1).read_to_string(&mut text)
    });
    match read.map(|length| length as u64) {
        Ok(..=MAX_SECRET) => {}
        Ok(_) => return Err("names a file of more than 64 KiB".to_owned()),
        Err(error) => {
            return Err(match error.kind() {
                ErrorKind::NotFound => "names a file that does not exist".to_owned(),
                kind => format!("names a file that cannot be read: {kind}"),
            });
        }
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    match text.is_empty() {
        true => Err("names a file that is empty".to_owned()),
        false => Ok(text),
    }
}

/// Reads an API key from its file.
///
/// # Errors
/// What is wrong with the file or the key, to follow the setting's name.
pub fn read_api_key(path: &Path) -> Result<SecretString, String> {
    let key = read_secret_file(path)?;
    match is_header_value(&key) {
        true => Ok(key.into()),
        false => Err("holds what cannot be sent as a header".to_owned()),
    }
}

pub(super) fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "must be true or false")
}

pub(super) fn whole_number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    parse_whole(text)
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = positive_duration(text)?;
    match duration.subsec_nanos() {
        0 => Ok(duration),
        _ => Err("must be whole seconds".to_owned()),
    }
}

/// Whether text arrives as it was sent when it is the value of an HTTP header: no control characters,
/// and no spaces at its ends, which whoever receives it would take away.
pub fn is_header_value(text: &str) -> bool {
    reqwest::header::HeaderValue::from_bytes(text.as_bytes()).is_ok()
        && text.trim_matches([' ', '\t']) == text
}

/// Whether a URL leads to this machine whatever the resolver says.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

pub(super) fn base_url(text: &str, allow_http: bool) -> Result<Url, &'static str> {
    const FORM: &str = "must be a URL such as https://idv.example.com";
    // The parser is a browser's: it mends what was not meant to be a URL.
    let strange = |c: char| c.is_whitespace() || c.is_control() || c == '\\';
    if text.contains(strange) || !text.contains("://") {
        return Err(FORM);
    }
    let url = Url::parse(text).map_err(|_| FORM)?;
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) || allow_http => {}
        "http" => {
            return Err(
                "is plain http, which would show the API key and every link to the network; \
                        use https, or set HANDOFF_IDV_ALLOW_HTTP=true",
            );
        }
        _ => return Err("must begin with https:// (or http://)"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no user name or password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must be a base URL: without `?` and `#`");
    }
    Ok(url)
}

pub(super) fn amqp_url(text: &str) -> Result<SecretString, &'static str> {
    const FORM: &str = "must be an AMQP URL such as amqps://user:password@rabbitmq.example.com/%2f";
    if !(text.starts_with("amqp://") || text.starts_with("amqps://")) {
        return Err(FORM);
    }
    let host = Url::parse(text).ok().and_then(|url| url.host_str().map(str::to_owned));
    if host.is_none_or(|host| host.is_empty()) {
        return Err(FORM);
    }
    let query = lapin::uri::AMQPUri::from_str(text).map_err(|_| FORM)?.query;
    if query.frame_max.is_some_and(|max| max != 0 && max < MIN_FRAME) {
        return Err("holds a `frame_max` below 8192 bytes, which RabbitMQ refuses");
    }
    Ok(SecretString::from(text))
}

pub(super) fn redis_url(text: &str) -> Result<SecretString, &'static str> {
    const FORM: &str =
        "must be a Redis URL such as rediss://user:password@redis.example.com:6379/0";
    if !(text.starts_with("redis://") || text.starts_with("rediss://")) {
        return Err(FORM);
    }
    text.into_connection_info().map_err(|_| FORM)?;
    if text.contains('#') {
        return Err("must hold no `#`: there is no way to leave certificates unchecked");
    }
    Ok(SecretString::from(text))
}

pub(super) fn amqp_name(text: &str) -> Result<String, &'static str> {
    if text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err("must be 1 to 255 bytes long, without control characters");
    }
    if text.starts_with("amq.") {
        return Err("must not begin with `amq.`, which RabbitMQ keeps for itself");
    }
    Ok(text.to_owned())
}

pub(super) fn key_prefix(text: &str) -> Result<String, &'static str> {
    let wrong = |c: char| c == '{' || c == '}' || c.is_whitespace() || c.is_control();
    match text.len() <= MAX_NAME && !text.contains(wrong) {
        true => Ok(text.to_owned()),
        false => Err("must be at most 255 bytes without braces, spaces or control characters"),
    }
}

pub(super) fn retry_delays(text: &str) -> Result<Vec<RetryDelay>, String> {
    let delay = |text: &str| {
        let name = text.trim();
        let delay = positive_duration(name)?;
        match delay <= MAX_QUEUE_TTL {
            true => Ok(RetryDelay::new(name, delay)),
            false => Err("holds a delay above 49 days".to_owned()),
        }
    };
    text.split(',').map(delay).collect::<Result<_, _>>().map_err(|why| {
        match why.starts_with("must be a duration") {
            true => "must be durations with commas between, such as 10s,1m,5m".to_owned(),
            false => why,
        }
    })
}

/// A word that is no level is taken for the name of a part, and then all of that part is logged. Only
/// our own parts are logged at all, so any other name is a slip, such as `warning` for `warn`.
pub(super) fn log_directives(text: &str) -> Result<String, &'static str> {
    if EnvFilter::builder().parse(text).is_err() {
        return Err("must be tracing filter directives, such as info or info,handoff=debug");
    }
    let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
    let is_known = |word: &str| {
        is_level(word) || word.contains(['=', '[', ']']) || word.starts_with(env!("CARGO_PKG_NAME"))
    };
    match text.split(',').map(str::trim).all(is_known) {
        true => Ok(text.to_owned()),
        false => {
            Err("holds a word that is neither a level (error, warn, info, debug, trace, off) nor \
                      a part of handoff with one, such as info,handoff::worker=debug")
        }
    }
}

pub(super) fn seal_keys(text: &str) -> Result<Vec<SecretBox<[u8; 32]>>, &'static str> {
    let key = |text: &str| {
        let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
        let bytes: [u8; 32] = bytes.try_into().ok()?;
        Some(SecretBox::new(Box::new(bytes)))
    };
    text.split(',')
        .map(key)
        .collect::<Option<_>>()
        .ok_or("must be base64 of exactly 32 bytes, or several with commas between")
}
