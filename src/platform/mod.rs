//! The identity-verification platform: its two calls, what their answers mean, and the handoff URL.

mod answer;
mod client;
mod error;
mod link;

pub use self::{
    client::{BadClient, Platform, SessionCall},
    error::{CallError, Transient},
    link::{encode_component, handoff_url},
};
