//! The steps about a session that the platform may have made for an earlier holder of the lease.

use super::{Attempt, DeferredCall, Made, Obtained, Right, World, Written};
use crate::{
    cache::{
        Lease, StoreOutcome,
        node::InjectedFault,
        tests::model::{Overwrite, StoreCall},
    },
    session::{Access, Session},
};

impl World {
    /// Makes the session of an attempt, or returns the one that the platform has made for the same request and token.
    pub(super) fn make_session(&mut self, attempt: &Attempt) -> usize {
        let Attempt { claim, person, request, token, session, .. } = *attempt;
        let number = self.next_number();
        let made = Made { session: session.unwrap_or(number), claim };
        self.made.entry((person, request, token)).or_insert(made).session
    }

    /// Writes the index entry of a session that may have ended, before its link is stored.
    pub(super) async fn index_early(&mut self, worker: usize) {
        let Some((mut attempt, right)) = self.workers[worker].attempt.take() else { return };
        if attempt.is_repeat && attempt.had_ended.is_none() && matches!(right, Right::Lease(_)) {
            let session = self.make_session(&attempt);
            attempt.session = Some(session);
            let written = self.link_of(&attempt, session);
            let Obtained { person, link, .. } = written;
            let cache = self.workers[worker].cache.clone();
            let session = self.session(person, session);
            let had_ended =
                cache.write_index(&self.keys(person), self.link_id(person, link), &session).await;
            assert_eq!(had_ended, Ok(self.model_index(written)));
            if had_ended == Ok(false) {
                self.workers[worker].recent.push(Written::Index(written));
            }
            attempt.had_ended = had_ended.ok();
        }
        self.workers[worker].attempt = Some((attempt, right));
    }

    /// Stores the link of a session that may have ended, and writes its index entry unless that is written. The fault
    /// concerns the link, or the entry if `in_entry`.
    pub(super) async fn store_of_repeat(
        &mut self,
        worker: usize,
        attempt: Attempt,
        lease: &Lease,
        in_entry: bool,
        fault: Option<InjectedFault>,
    ) {
        let Attempt { claim, person, request, newest, mark, .. } = attempt;
        let session = self.make_session(&attempt);
        let obtained = self.link_of(&attempt, session);
        let in_entry = in_entry && attempt.had_ended.is_none();
        let lost = |script_of_entry| fault.filter(|_| in_entry == script_of_entry);
        let made = Session {
            access: Access::Token(self.token_text(person, attempt.token).into()),
            ..self.session(person, session)
        };
        self.inject_after(worker, usize::from(in_entry), fault);
        let stored = match attempt.had_ended {
            None => lease.store_unless_ended(&made).await,
            Some(_) => {
                self.set_takes_two_slots(worker, false);
                lease.store(&made).await
            }
        };

        let call = StoreCall {
            claim,
            request,
            session,
            overwrite: Overwrite::Seen(newest),
            mark,
            late: false,
            with_entry: false,
            short_lived: false,
        };
        let is_stored = (lost(false) != Some(InjectedFault::ScriptLost))
            .then(|| self.model_store(attempt, &call));
        let late = StoreCall { late: true, ..call };
        match (is_stored, lost(false)) {
            (Some(true), None) => {
                self.workers[worker].recent.push(Written::Link(attempt, late));
            }
            (_, Some(_)) => {
                self.workers[worker].deferred.push(DeferredCall::Store(attempt, late));
            }
            _ => {}
        }
        let had_ended = attempt.had_ended.or_else(|| {
            let lost = lost(true);
            let had_ended =
                (lost != Some(InjectedFault::ScriptLost)).then(|| self.model_index(obtained));
            let worker = &mut self.workers[worker];
            if lost.is_some() {
                worker.deferred.push(DeferredCall::Index(obtained));
                return None;
            }
            if had_ended == Some(false) {
                worker.recent.push(Written::Index(obtained));
            }
            had_ended
        });
        if had_ended == Some(true) {
            if attempt.had_ended.is_some() {
                let cache = self.workers[worker].cache.clone();
                let (keys, link) = (self.keys(person), self.link_id(person, obtained.link));
                cache.forget_ended(&keys, link, &made).await;
            } else {
                assert_eq!(stored, Ok(StoreOutcome::Ended));
            }
            self.people[person].forget(obtained.link);
            return;
        }
        match stored {
            Ok(StoreOutcome::Stored { is_indexed }) => {
                assert_eq!((is_stored, is_indexed), (Some(true), false));
            }
            Ok(StoreOutcome::Fenced) => return assert_eq!(is_stored, Some(false)),
            Ok(StoreOutcome::Ended) => panic!("it has not ended"),
            Err(_) => assert!(lost(false).is_some()),
        }
        // The entry was written last, so that an ending before it is seen.
        if had_ended == Some(false) && attempt.had_ended.is_none() {
            let ended = self.over.contains(&(person, session));
            assert!(!ended, "session {session} of {person} has ended");
        }
        self.workers[worker].obtained = Some(obtained);
    }

    fn link_of(&self, attempt: &Attempt, session: usize) -> Obtained {
        let Attempt { person, request, .. } = *attempt;
        Obtained { person, link: (request, session), short_lived: false, is_indexed: false }
    }
}
