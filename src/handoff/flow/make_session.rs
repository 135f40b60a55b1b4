//! The interface of a flow.

use crate::{
    cache::Lease,
    handoff::{
        budget::CallBudget,
        calls::{Calls, Stopped},
        job::Job,
    },
    session::{Call, Session},
};

/// A session that the platform has returned.
pub(in crate::handoff) struct NewSession {
    pub(in crate::handoff) session: Session,
    /// An earlier try in this delivery, or with the same token, may have made it.
    pub(in crate::handoff) is_of_repeat: bool,
}

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
    ) -> Result<NewSession, Stopped>;
}
