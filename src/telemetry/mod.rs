//! Logs, metrics and traces.

pub(crate) mod log_limit;
pub mod logs;
pub mod metrics;
pub mod traces;
