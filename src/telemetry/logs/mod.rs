//! Log lines: to stderr, one per event, for people or for machines.

mod json;

use std::io::IsTerminal;

use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

use super::log_limit::LogLimit;
use crate::config::{LogFormat, LogSettings};

static PANICS: LogLimit = LogLimit::new("panicked", 10);

/// Sends log lines to stderr from here on, and panics to the log.
///
/// Only this program's own lines are let through. The libraries below would, at trace level, print
/// frames and headers, and with them tokens, links and user ids.
pub fn init(settings: &LogSettings) {
    let terminal = std::io::stderr().is_terminal();
    let format =
        settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // The settings were read by the same parser; should that ever differ, less is logged, not more.
    let filter = EnvFilter::builder().parse(&settings.directives).unwrap_or_else(|_| "info".into());
    let colours = terminal && colours_wanted();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines.with_ansi(false).event_format(json::Json).boxed(),
    };
    let ours = filter_fn(|metadata: &Metadata<'_>| metadata.target().starts_with("handoff"));
    // Each command sets it once; a second call, as tests might make, leaves the first in place.
    let _ = tracing_subscriber::registry().with(lines.with_filter(ours)).with(filter).try_init();
    log_panics();
}

/// Whether colours are welcome, where there is a terminal to show them.
pub fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A panic's message may hold anything, so only its place is told.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        if PANICS.permit() {
            tracing::error!(place, "panicked; the message is withheld, since it may hold a secret");
        }
    }));
}
