//! The wire types: what producers publish and consumers read, as the reference tells it under
//! "The request" and "The events".

mod cloud_event;
mod decode;
mod event;
mod request;
mod trace_context;

pub use self::{
    event::{Event, EventBody, FailedReason, READY, FAILED, ReasonCode},
    request::{Invalid, Metadata, REQUESTED, Request, RequestId, decode_request},
    trace_context::TraceContext,
};
