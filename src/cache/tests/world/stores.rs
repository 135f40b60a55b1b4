//! The steps that store a link.

use std::{sync::atomic::Ordering, time::SystemTime};

use super::{Attempt, DeferredCall, LIFE, Obtained, Right, World, Written};
use crate::{
    cache::{
        Overwrite, StoreOutcome,
        node::InjectedFault,
        test_redis::LINK_MIN_LIFE,
        tests::model::{self, Link, StoreCall},
    },
    session::{Access, Session},
};

impl World {
    /// Stores the link of a session. `other`: replaces any link, if the claim was not answered; otherwise leaves the
    /// index entry to another script, as in a cluster.
    pub(super) async fn store(
        &mut self,
        worker: usize,
        short_lived: bool,
        other: bool,
        fault: Option<InjectedFault>,
    ) {
        let Some((attempt, right)) = self.workers[worker].attempt.take() else { return };
        if let Right::Lease(lease) = &right
            && attempt.is_repeat
        {
            return self.store_of_repeat(worker, attempt, lease, other, fault).await;
        }
        let Attempt { claim, request, person, token, newest, mark, .. } = attempt;
        let session = self.make_session(&attempt);
        let overwrite = match &right {
            Right::Lease(_) => model::Overwrite::Seen(newest),
            Right::Unanswered(_) if other => model::Overwrite::Any,
            Right::Unanswered(_) => model::Overwrite::Seen(None),
        };
        let with_entry = matches!(right, Right::Lease(_)) && !other;
        let life = if short_lived { LINK_MIN_LIFE } else { LIFE };
        let made = Session {
            access: Access::Token(self.token_text(person, token).into()),
            id: self.session_id(person, session),
            made_at: self.made_at(session),
            expires_at: SystemTime::now() + life,
        };
        self.set_takes_two_slots(worker, with_entry);
        self.inject(worker, fault);
        let stored = match right {
            Right::Lease(lease) => lease.store(&made).await,
            Right::Unanswered(claim) if other => claim.store(&made, Overwrite::Any).await,
            Right::Unanswered(claim) => claim.store(&made, Overwrite::IfAbsent).await,
        };
        let link = (request, session);
        let obtained = Obtained { person, link, short_lived, is_indexed: false };
        // An entry that is there already is left to the other script.
        let with_entry = with_entry && !self.has_index_entry(obtained);
        let late = false;
        let call =
            StoreCall { claim, request, session, overwrite, mark, late, with_entry, short_lived };
        let was = self.people[person].link.as_ref().map(Link::id);
        let expected =
            (fault != Some(InjectedFault::ScriptLost)).then(|| self.model_store(attempt, &call));
        let is = self.people[person].link.as_ref().map(Link::id);
        let is_indexed = with_entry && is == Some(link) && was != is;
        if is_indexed {
            assert!(!self.model_index(obtained));
        }
        let call = StoreCall { late: true, with_entry: false, ..call };
        match stored {
            Ok(StoreOutcome::Fenced) => return assert_eq!(expected, Some(false)),
            Ok(outcome) => {
                assert_eq!(outcome, StoreOutcome::Stored { is_indexed });
                assert_eq!(expected, Some(true));
                let recent = &mut self.workers[worker].recent;
                recent.push(Written::Link(attempt, call));
                recent.extend(is_indexed.then_some(Written::Index(obtained)));
            }
            Err(_) => {
                assert!(fault.is_some());
                self.workers[worker].deferred.push(DeferredCall::Store(attempt, call));
            }
        }
        let is_indexed = is_indexed && fault.is_none();
        self.workers[worker].obtained = Some(Obtained { is_indexed, ..obtained });
    }

    /// Whether the worker's Redis seems to execute scripts over two slots.
    pub(super) fn set_takes_two_slots(&self, worker: usize, takes: bool) {
        let node = self.workers[worker].cache.0.pool.node("");
        node.one_slot.store(if takes { 0 } else { u64::MAX }, Ordering::Relaxed);
    }

    /// Stores a link in the model. Returns whether the call went through.
    pub(super) fn model_store(&mut self, attempt: Attempt, call: &StoreCall) -> bool {
        let is_stored = self.people[attempt.person].store(call);
        if is_stored {
            self.spent.insert(attempt.token);
            if !call.short_lived {
                self.record_first_link(attempt.person, call.request);
            }
        }
        is_stored
    }

    /// Records that the present link was made for this request, unless an earlier one was.
    pub(super) fn record_first_link(&mut self, person: usize, request: usize) {
        let session = self.people[person].link.as_ref().unwrap().session;
        self.first_link.entry((person, request)).or_insert(session);
    }
}
