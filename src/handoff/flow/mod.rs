//! How a session is made: one implementation for each flow of the platform.
//!
//! The use case does not know which flow it is. Dispatch is static: a boxed future would cost each request an
//! allocation, and the future of the larger flow fits into a request's.

mod make_session;
mod one_call;
mod two_calls;

use futures_util::future::Either;

pub(super) use self::make_session::NewSession;
use self::{make_session::MakeSession, one_call::OneCall, two_calls::TwoCalls};
use super::{
    budget::CallBudget,
    calls::{Calls, Stopped},
    job::Job,
};
use crate::{cache::Lease, config, session::Call};

/// The first call of a flow, to reserve a permit of the rate limit for.
pub(super) fn first_call(flow: config::Flow) -> Call {
    match flow {
        config::Flow::Token => TwoCalls::FIRST_CALL,
        config::Flow::Deeplink => OneCall::FIRST_CALL,
    }
}

/// Makes a session in the flow that is configured.
///
/// Not an `async fn`, whose future would hold the arguments a second time.
pub(super) fn make<'a>(
    flow: config::Flow,
    calls: &'a Calls,
    job: &'a Job<'_>,
    lease: Option<&'a Lease>,
    budget: &'a mut CallBudget<'_>,
) -> impl Future<Output = Result<NewSession, Stopped>> {
    match flow {
        config::Flow::Token => Either::Left(TwoCalls::make(calls, job, lease, budget)),
        config::Flow::Deeplink => Either::Right(OneCall::make(calls, job, lease, budget)),
    }
}
