//! Takes each step in Redis and in the model, and compares the answers.

use std::sync::Arc;

use deadpool_redis::redis::cmd;
use secrecy::ExposeSecret;

use super::{Attempt, DeferredCall, LIFE, LeaseCall, Obtained, Right, World, Written};
use crate::cache::{
    Claim, Freshness, Lease, Stamp, UnansweredClaim,
    node::InjectedFault,
    tests::{
        model::{self, Answer},
        step::{PEOPLE, Step},
    },
};

/// What is left of a lease before the test extends it, in milliseconds: less than a full TTL.
const WORN_LEASE_MS: i64 = 4_000;

impl World {
    pub(in crate::cache::tests) async fn apply(&mut self, step: Step) {
        match step {
            Step::Claim { worker, person, request, freshness, fault } => {
                if self.workers[worker].attempt.is_none() {
                    self.claim(worker, person, request, freshness, fault).await;
                }
            }
            Step::SaveToken { worker, fault } => {
                self.lease_call(worker, LeaseCall::SaveToken, fault).await;
            }
            Step::Extend { worker, fault } => {
                self.lease_call(worker, LeaseCall::Extend, fault).await;
            }
            Step::RepeatClaim { worker, freshness, fault } => {
                self.repeat_claim(worker, freshness, fault).await;
            }
            Step::Release { worker, drop_token, fault } => {
                self.lease_call(worker, LeaseCall::Release { drop_token }, fault).await;
                let worker = &mut self.workers[worker];
                if let Some((attempt, Right::Unanswered(claim))) = worker.attempt.take() {
                    claim.release();
                    worker.deferred.push(DeferredCall::Release(attempt));
                }
            }
            Step::MakeSession { worker } => {
                if let Some((mut attempt, right)) = self.workers[worker].attempt.take() {
                    attempt.session = Some(self.make_session(&attempt));
                    self.workers[worker].attempt = Some((attempt, right));
                }
            }
            Step::IndexEarly { worker } => self.index_early(worker).await,
            Step::Store { worker, short_lived, other, fault } => {
                self.store(worker, short_lived, other, fault).await;
            }
            Step::AddStamp { worker, person, request, fault } => {
                self.add_stamp(worker, person, request, fault).await;
            }
            Step::Crash { worker } => self.workers[worker] = self.new_worker().await,
            Step::RunDeferred { worker } => self.run_deferred(worker).await,
            Step::RepeatRecent { worker } => {
                let worker = &mut self.workers[worker];
                worker.cache.0.pool.deferred.repeat_recent(&|_| true);
                let recent = std::mem::take(&mut worker.recent);
                worker.deferred.extend(recent.into_iter().map(DeferredCall::Repeat));
            }
            Step::Index { worker, fault } => self.write_index(worker, fault).await,
            Step::NoteIndexed { worker, fault } => self.note_indexed(worker, fault).await,
            Step::EndUntil { worker, person, back, fault } => {
                self.end_until(worker, person, back, fault).await;
            }
            Step::EndSession { worker, person, which, of, fault } => {
                self.end_session(worker, person, which, of, fault).await;
            }
            Step::ArriveLate { which } => {
                if !self.delayed.is_empty() {
                    let delayed = self.delayed.remove(which.index(self.delayed.len()));
                    let (attempt, lease, call) = delayed;
                    self.deliver(attempt, &lease, call).await;
                }
            }
            Step::ExpireLease { person } => {
                self.people[person].lease = None;
                self.redis.delete(&[&self.keys(person).lease]).await;
            }
            Step::LoseData { person } => {
                self.people[person].link = None;
                self.people[person].token = None;
                // An earlier session may be stored now.
                self.first_link.retain(|(of, _), _| *of != person);
                let keys = self.keys(person);
                self.redis.delete(&[&keys.link, &keys.saved]).await;
            }
        }
        for person in 0..PEOPLE {
            self.compare(person).await;
        }
        self.compare_endings().await;
    }

    async fn claim(
        &mut self,
        worker: usize,
        person: usize,
        request: usize,
        freshness: model::Freshness,
        fault: Option<InjectedFault>,
    ) {
        let claim = self.next_number();
        let token = self.next_number();
        let attempt = Attempt {
            claim,
            person,
            request,
            token,
            session: None,
            newest: None,
            mark: None,
            is_repeat: false,
            had_ended: None,
        };
        self.claim_as(worker, attempt, None, freshness, fault).await;
    }

    async fn repeat_claim(
        &mut self,
        worker: usize,
        freshness: model::Freshness,
        fault: Option<InjectedFault>,
    ) {
        match self.workers[worker].attempt.take() {
            // Once it has made a session, a worker stores it.
            Some((attempt, Right::Unanswered(claim))) if attempt.session.is_none() => {
                self.claim_as(worker, attempt, Some(*claim), freshness, fault).await;
            }
            other => self.workers[worker].attempt = other,
        }
    }

    async fn claim_as(
        &mut self,
        worker: usize,
        mut attempt: Attempt,
        unanswered: Option<UnansweredClaim>,
        freshness: model::Freshness,
        fault: Option<InjectedFault>,
    ) {
        let Attempt { claim, person, request, .. } = attempt;
        let keys = self.keys(person);
        let stamp = self.stamp(person, request);
        let asked = match freshness {
            model::Freshness::Any => Freshness::Any,
            model::Freshness::SinceRequest => Freshness::SinceRequest,
            model::Freshness::OtherThan(known) => Freshness::OtherThan(self.stamp(person, known)),
        };
        self.inject(worker, fault);
        let answer = self.workers[worker].cache.claim(&keys, &stamp, &asked, unanswered).await;
        self.model_deferred_of(worker, person);
        let expected = (fault != Some(InjectedFault::ScriptLost))
            .then(|| self.people[person].claim(claim, request, freshness));
        let newest = |number: Option<usize>| {
            number.map_or(Stamp::from_redis(b""), |number| self.stamp(person, number))
        };
        match (answer, expected) {
            (Err(unanswered), _) if fault.is_some() => {
                self.workers[worker].attempt =
                    Some((attempt, Right::Unanswered(Box::new(unanswered))));
            }
            (Ok(Claim::Link(link)), Some(Answer::Link(expected))) => {
                let id = self.session_id(person, expected);
                assert_eq!(link.session.id, id, "another session");
                if !self.take_link(worker, person, link).await {
                    return;
                }
                if let model::Freshness::SinceRequest = freshness {
                    assert!(self.first_link[&(person, request)] <= expected, "an old link");
                }
            }
            (Ok(Claim::Lease(lease)), Some(Answer::Lease { token, newest: expected })) => {
                let stored = lease.stored_token.as_ref();
                let stored = stored.map(|token| token.value.expose_secret().to_owned());
                assert_eq!(stored, token.map(|token| self.token_text(person, token)));
                assert!(token.is_none_or(|token| !self.spent.contains(&token)), "a spent token");
                assert_eq!(lease.newest, newest(expected));
                attempt.token = token.unwrap_or(attempt.token);
                attempt.is_repeat = token.is_some();
                if let Some(made) = self.made.get_mut(&(person, request, attempt.token)) {
                    made.claim = claim;
                }
                attempt.newest = expected;
                attempt.mark = self.people[person].mark.map(|mark| mark.number);
                self.workers[worker].attempt = Some((attempt, Right::Lease(Arc::new(lease))));
            }
            (
                Ok(Claim::LeaseTaken { newest: known }),
                Some(Answer::LeaseTaken { newest: expected }),
            ) => {
                assert_eq!(known, newest(expected));
            }
            (answer, expected) => panic!("{answer:?} instead of {expected:?}"),
        }
    }

    async fn add_stamp(
        &mut self,
        worker: usize,
        person: usize,
        request: usize,
        fault: Option<InjectedFault>,
    ) {
        let keys = self.keys(person);
        let stamp = self.stamp(person, request);
        self.inject(worker, fault);
        self.workers[worker].cache.add_stamp(&keys, &stamp).await;
        if fault != Some(InjectedFault::ScriptLost) && self.people[person].add_stamp(request) {
            self.record_first_link(person, request);
        }
    }

    async fn run_deferred(&mut self, worker: usize) {
        // As the keeper does after a reconnect.
        let pool = &self.workers[worker].cache.0.pool;
        let connection = pool.node("").state.working_connection().unwrap();
        pool.deferred.run(&connection, &|_| true, None).await;
        let calls = std::mem::take(&mut self.workers[worker].deferred);
        self.model_deferred(calls);
    }

    pub(super) fn model_deferred(&mut self, mut calls: Vec<DeferredCall>) {
        // Stable.
        calls.sort_by_key(DeferredCall::turn);
        let mut ended = Vec::new();
        for call in calls {
            match call {
                // Too late to be of use.
                DeferredCall::Store(_, call) | DeferredCall::Repeat(Written::Link(_, call))
                    if call.short_lived => {}
                DeferredCall::Store(attempt, call)
                | DeferredCall::Repeat(Written::Link(attempt, call)) => {
                    let _ = self.model_store(attempt, &call);
                }
                DeferredCall::Index(link) | DeferredCall::Repeat(Written::Index(link)) => {
                    if self.model_index(link) {
                        ended.push(link);
                    }
                }
                DeferredCall::Repeat(written) => self.model_ending(&written),
                DeferredCall::Release(attempt) => {
                    self.people[attempt.person].release(attempt.claim, false);
                }
            }
        }
        for Obtained { person, link, .. } in ended {
            self.people[person].forget(link);
        }
    }

    /// Makes a call on the worker's lease, if it has one.
    async fn lease_call(&mut self, worker: usize, call: LeaseCall, fault: Option<InjectedFault>) {
        let Some((attempt, Right::Lease(lease))) = &self.workers[worker].attempt else { return };
        let attempt = *attempt;
        let lease = Arc::clone(lease);
        self.inject(worker, fault);
        if fault == Some(InjectedFault::ScriptLost) {
            self.send(attempt, &lease, call).await;
            self.delayed.push((attempt, lease, call));
        } else {
            self.deliver(attempt, &lease, call).await;
        }
    }

    async fn send(&self, attempt: Attempt, lease: &Lease, call: LeaseCall) {
        match call {
            LeaseCall::SaveToken => {
                let token = self.token(attempt.person, attempt.token, LIFE);
                lease.save_token(&token).await;
            }
            LeaseCall::Extend => drop(lease.extend().await),
            LeaseCall::Release { drop_token } => lease.release(drop_token).await,
        }
    }

    /// Sends a call that reaches Redis, and repeats it in the model.
    async fn deliver(&mut self, attempt: Attempt, lease: &Lease, call: LeaseCall) {
        let keys = self.keys(attempt.person);
        if let LeaseCall::Extend = call {
            let mut wear = cmd("PEXPIRE");
            wear.arg(&keys.lease).arg(WORN_LEASE_MS);
            wear.query_async::<()>(&mut self.redis.connection).await.unwrap();
        }
        self.send(attempt, lease, call).await;
        let person = &mut self.people[attempt.person];
        match call {
            LeaseCall::SaveToken => person.save_token(attempt.claim, attempt.token),
            LeaseCall::Release { drop_token } => person.release(attempt.claim, drop_token),
            LeaseCall::Extend => {
                let is_ours = person.lease == Some(attempt.claim);
                let ttl_ms: i64 = cmd("PTTL")
                    .arg(&keys.lease)
                    .query_async(&mut self.redis.connection)
                    .await
                    .unwrap();
                assert_eq!(ttl_ms > WORN_LEASE_MS, is_ours, "{ttl_ms} ms left");
            }
        }
    }

    /// Makes the worker's next operation meet the fault, if there is one.
    pub(super) fn inject(&self, worker: usize, fault: Option<InjectedFault>) {
        self.inject_after(worker, 0, fault);
    }

    /// Makes one of the worker's next operations meet the fault: that after so many.
    pub(super) fn inject_after(&self, worker: usize, after: usize, fault: Option<InjectedFault>) {
        *self.workers[worker].cache.0.pool.node("").fault.lock() =
            fault.map(|fault| (after, fault));
    }
}
