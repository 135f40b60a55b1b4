//! Logging, as each command starts it.

use crate::{
    config::{LogSettings, UnknownVariable, unknown_variables},
    telemetry::logs,
};

/// Starts logging, and warns of variables that are not settings. Values are never logged.
pub(super) fn init(settings: &LogSettings) {
    logs::init(settings);
    for UnknownVariable { name, nearest } in unknown_variables() {
        tracing::warn!(variable = name, nearest, "unknown setting ignored: check its name");
    }
}
