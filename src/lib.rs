//! handoff
#![forbid(unsafe_code)]
pub mod broker;
pub mod cache;
pub mod cli;
pub mod client;
pub mod config;
pub mod handoff;
pub mod health;
pub mod message;
pub mod platform;
pub mod retry;
pub mod sandbox;
pub mod session;
pub mod single_flight;
pub mod telemetry;
pub mod worker;
