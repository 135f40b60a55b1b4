//! Log lines on stderr, one per event, as text or JSON.

mod json;

use std::io::IsTerminal;

use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::log_limit::LogLimit;
use crate::config::{LogFormat, LogSettings};

const PANICKED: &str = "panicked: message withheld because it may contain a secret";
static PANICS: LogLimit = LogLimit::new(PANICKED, 10);

/// Sends log lines and panics to stderr from here on.
///
/// Drops the lines of all libraries: at trace level they print frames and headers, and with them
/// tokens, links and user ids.
pub fn init(settings: &LogSettings) {
    let terminal = std::io::stderr().is_terminal();
    let format =
        settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // `config` has parsed the directives already. Should the parsers differ, log less, not more.
    let filter = EnvFilter::builder().parse(&settings.directives).unwrap_or_else(|_| "info".into());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(terminal && colours_wanted()).boxed(),
        LogFormat::Json => lines.with_ansi(false).event_format(json::Json).boxed(),
    };
    let own = filter_fn(|metadata: &Metadata<'_>| metadata.target().starts_with("handoff"));
    // Fails if a subscriber is set already, as in a test that calls this twice: the first stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(own)).with(filter).try_init();
    log_panics();
}

/// Returns false if the user has set `NO_COLOR` (<https://no-color.org>).
pub(crate) fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Logs where a panic happened, but not its message, which may contain anything.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        if PANICS.permit() {
            tracing::error!(location, "{PANICKED}");
        }
    }));
}
