//! The one-call flow: the platform's answer is the link.

use std::time::SystemTime;

use super::make_session::{MakeSession, NewSession};
use crate::{
    cache::Lease,
    handoff::{
        asked::Asked,
        budget::CallBudget,
        calls::{Calls, Stopped},
        job::Job,
        log,
    },
    platform::Deeplink,
    session::{Access, Call, Session},
};

pub(super) struct OneCall;

impl MakeSession for OneCall {
    const FIRST_CALL: Call = Call::Deeplink;

    /// Makes a session. A repeated call carries the same `Idempotency-Key`, so that a platform that honours it
    /// returns the session of an earlier try, whichever replica made that.
    async fn make(
        calls: &Calls,
        job: &Job<'_>,
        lease: Option<&Lease>,
        budget: &mut CallBudget<'_>,
    ) -> Result<NewSession, Stopped> {
        // Without Redis, the number is not known.
        let earlier_links = lease.map_or(0, Lease::earlier_links);
        let mut asked = Asked::never();
        let Deeplink { url, session_id, expires_at } =
            calls.deeplink(job, earlier_links, &mut asked, lease, budget).await?;
        let lifetimes = calls.cache.lifetimes();
        if expires_at.is_none_or(|end| end <= asked.last_at) {
            log::expiry_ignored(job.request_id);
        }
        let end = |made_at: SystemTime| {
            let ttl_end = made_at + lifetimes.token;
            let limit =
                expires_at.filter(|end| *end > made_at).map_or(ttl_end, |end| end.min(ttl_end));
            lifetimes.link_end(made_at, limit)
        };
        // The first try may have made the session, unless that would have ended in the meantime.
        let made_at = asked.first_at;
        let access = Access::Link(url);
        let mut session = Session { access, id: session_id, made_at, expires_at: end(made_at) };
        if lifetimes.reusable_until(&session) <= SystemTime::now() {
            session.made_at = asked.last_at;
            session.expires_at = end(asked.last_at);
        }
        Ok(NewSession { session, is_of_repeat: asked.is_repeat })
    }
}
