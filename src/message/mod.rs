//! The wire types: what producers publish and consumers read, as the reference tells it under
//! "The request" and "The events".

mod cloud_event;
mod decode;
mod event;
mod request;
pub mod schema;
mod trace_context;

pub use self::{
    event::{
        Event, EventBody, FAILED, FailedReason, READY, ReasonCode, format_date_time,
        parse_date_time,
    },
    request::{Decoded, InvalidRequest, Metadata, REQUESTED, Request, RequestId, decode_request},
    trace_context::TraceContext,
};
