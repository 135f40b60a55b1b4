//! The identity-verification platform: its two calls, what their answers mean, the gate before them, and
//! the handoff URL.

pub(crate) mod answer;
mod client;
mod error;
mod gate;
mod key;
mod link;

pub use self::{
    client::{BadClient, Platform, SessionCall},
    error::{CallError, Transient},
    gate::{Failed, Gate, Granted, Pass, Rate, Replicas, Shared, Ticket, Why},
    link::{encode_component, handoff_url},
};
