//! handoff
#![forbid(unsafe_code)]
pub mod config;
pub mod message;
pub mod retry;
