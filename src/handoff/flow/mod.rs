//! How a session is made: one implementation for each flow of the platform.
//!
//! The use case does not know which flow it is. Dispatch is static: a boxed future would cost each request an
//! allocation, and the future of the larger flow fits into a request's.

mod make_session;
mod one_call;
mod two_calls;

use self::{make_session::MakeSession, one_call::OneCall, two_calls::TwoCalls};
use super::{
    calls::{CallBudget, Calls, Stopped},
    job::Job,
};
use crate::{
    cache::Lease,
    config,
    session::{Call, Session},
};

/// The first call of a flow, to reserve a permit of the rate limit for.
pub(super) fn first_call(flow: config::Flow) -> Call {
    match flow {
        config::Flow::Token => TwoCalls::FIRST_CALL,
        config::Flow::Deeplink => OneCall::FIRST_CALL,
    }
}

/// Makes a session in the flow that is configured.
pub(super) async fn make(
    flow: config::Flow,
    calls: &Calls,
    job: &Job<'_>,
    lease: Option<&Lease>,
    budget: &mut CallBudget<'_>,
) -> Result<Session, Stopped> {
    match flow {
        config::Flow::Token => TwoCalls::make(calls, job, lease, budget).await,
        config::Flow::Deeplink => OneCall::make(calls, job, lease, budget).await,
    }
}
