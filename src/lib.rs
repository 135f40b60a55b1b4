//! handoff
#![forbid(unsafe_code)]
pub mod cache;
pub mod config;
pub mod flights;
pub mod message;
pub mod platform;
pub mod retry;
pub mod session;
pub mod telemetry;
