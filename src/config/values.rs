//! Parsers of single values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{SecretBox, SecretString};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::{
    setting::{ParseResult, ensure},
    settings::{Flow, LogFormat},
    units::{parse_duration, parse_whole},
};
use crate::retry::RetryDelay;

/// Longest time that RabbitMQ keeps a message by TTL: 32 bits of milliseconds.
const MAX_QUEUE_TTL: Duration = Duration::from_millis(u32::MAX as u64);
/// Longest name in AMQP 0-9-1, in bytes.
pub(super) const MAX_NAME: usize = 255;

pub(super) fn boolean(text: &str) -> ParseResult<bool> {
    text.parse().map_err(|_| "must be true or false")
}

pub(super) fn path(text: &str) -> ParseResult<PathBuf> {
    Ok(text.into())
}

pub(super) fn concurrency(text: &str) -> ParseResult<u16> {
    parse_whole(text).filter(|number| *number > 0).ok_or("must be a whole number from 1 to 65535")
}

pub(super) fn message_bytes(text: &str) -> ParseResult<usize> {
    // 128 MiB is the largest `max_message_size` that any version of RabbitMQ has by default.
    parse_whole(text)
        .filter(|number| (1..=128 << 20).contains(number))
        .ok_or("must be a whole number from 1 to 134217728")
}

pub(super) fn socket_addr(text: &str) -> ParseResult<SocketAddr> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 0.0.0.0:9464")
}

pub(super) fn workflow_id(text: &str) -> ParseResult<String> {
    ensure(text.len() <= 128, "must be 1 to 128 bytes long")?;
    Ok(text.to_owned())
}

pub(super) fn flow(text: &str) -> ParseResult<Flow> {
    match text {
        "token" => Ok(Flow::Token),
        "deeplink" => Ok(Flow::Deeplink),
        _ => Err("must be token or deeplink"),
    }
}

pub(super) fn log_format(text: &str) -> ParseResult<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be text or json"),
    }
}

/// Whether an HTTP header transports this value unchanged.
///
/// Recipients strip spaces at both ends; control characters are invalid.
pub(crate) fn is_header_value(text: &str) -> bool {
    reqwest::header::HeaderValue::from_bytes(text.as_bytes()).is_ok()
        && text.trim_matches([' ', '\t']) == text
}

pub(super) fn api_key(text: &str) -> ParseResult<SecretString> {
    const UNSENDABLE: &str =
        "holds a control character, or a space at its start or end: HTTP headers cannot send it";
    ensure(is_header_value(text), UNSENDABLE)?;
    Ok(text.into())
}

pub(super) fn base_url(text: &str) -> ParseResult<Url> {
    const FORM: &str = "must be a URL such as https://idv.example.com";
    // `Url` parses as browsers do: it would repair these into a URL that was not meant.
    let unexpected = |c: char| c.is_whitespace() || c.is_control() || c == '\\';
    ensure(text.contains("://") && !text.contains(unexpected), FORM)?;
    let url = Url::parse(text).map_err(|_| FORM)?;
    ensure(matches!(url.scheme(), "https" | "http"), "must begin with https:// or http://")?;
    let is_anonymous = url.username().is_empty() && url.password().is_none();
    ensure(is_anonymous, "must not contain a user name or password")?;
    let is_base = url.query().is_none() && url.fragment().is_none();
    ensure(is_base, "must be a base URL: remove `?` or `#` and what follows")?;
    Ok(url)
}

pub(super) fn amqp_name(text: &str) -> ParseResult<String> {
    let fits = text.len() <= MAX_NAME && !text.contains(char::is_control);
    ensure(fits, "must be 1 to 255 bytes long, without control characters")?;
    ensure(!text.starts_with("amq."), "must not begin with `amq.`, which RabbitMQ reserves")?;
    Ok(text.to_owned())
}

pub(super) fn key_prefix(text: &str) -> ParseResult<String> {
    let forbidden = |c: char| c == '{' || c == '}' || c.is_whitespace() || c.is_control();
    let fits = text.len() <= MAX_NAME && !text.contains(forbidden);
    ensure(fits, "must be 1 to 255 bytes long, without braces, spaces or control characters")?;
    Ok(text.to_owned())
}

pub(super) fn retry_delays(text: &str) -> ParseResult<Vec<RetryDelay>> {
    const FORM: &str = "must be durations separated by commas, such as 10s,1m,5m";
    let delay = |text: &str| {
        let name = text.trim();
        let duration = parse_duration(name).map_err(|_| FORM)?;
        let fits = !duration.is_zero() && duration <= MAX_QUEUE_TTL;
        ensure(fits, "must contain only delays greater than zero and up to 49 days")?;
        Ok(RetryDelay { name: name.to_owned(), duration })
    };
    text.split(',').map(delay).collect()
}

/// Accepts filter directives that can match: levels, and targets of this program.
///
/// `EnvFilter` treats any word that is not a level as a target, and enables all of it. Only handoff's
/// targets are logged, so another word is a typing error, such as `warning` for `warn`.
pub(super) fn log_directives(text: &str) -> ParseResult<String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|_| "must be tracing filter directives, such as info or info,handoff=debug")?;
    let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
    let is_known = |word: &str| {
        is_level(word) || word.contains(['=', '[', ']']) || word.starts_with(env!("CARGO_PKG_NAME"))
    };
    ensure(
        text.split(',').map(str::trim).all(is_known),
        "must contain only levels (error, warn, info, debug, trace, off) and parts of handoff, such as \
         info,handoff::worker=debug",
    )?;
    Ok(text.to_owned())
}

pub(super) fn seal_keys(text: &str) -> ParseResult<Vec<SecretBox<[u8; 32]>>> {
    let key = |text: &str| {
        let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
        let bytes: [u8; 32] = bytes.try_into().ok()?;
        Some(SecretBox::new(Box::new(bytes)))
    };
    text.split(',')
        .map(key)
        .collect::<Option<_>>()
        .ok_or("must be base64 of exactly 32 bytes, or several keys separated by commas")
}
