//! The interface of a flow.

use crate::{
    cache::Lease,
    handoff::{
        calls::{CallBudget, Calls, Stopped},
        job::Job,
    },
    session::{Call, Session},
};

/// Makes a session for a request.
pub(super) trait MakeSession {
    /// The first call that it makes.
    const FIRST_CALL: Call;

    /// Makes a session, under a lease unless Redis is unavailable.
    async fn make(
        calls: &Calls,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<Session, Stopped>;
}
