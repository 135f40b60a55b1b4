//! What the worker tells about itself: logs, metrics and traces.

pub mod logs;
pub mod metrics;
pub mod quota;
pub mod traces;
