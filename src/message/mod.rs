//! The wire types: requests and events, as `docs/reference/messages.md` defines them.

mod body;
mod cloud_event;
mod decode;
mod diagnosis;
mod ending;
mod event;
mod field;
mod request;
mod request_id;
pub(crate) mod schema;
mod time;
mod trace_context;

pub(crate) use self::{
    cloud_event::{ENDED, REQUESTED},
    ending::{Ending, decode_ending},
    event::{FAILED, READY},
    time::parse_date_time,
};
pub use self::{
    event::{Event, EventBody, FailedReason, ReasonCode},
    request::{Decoded, InvalidRequest, Request, decode_request},
    request_id::RequestId,
    time::format_date_time,
    trace_context::TraceContext,
};
