//! The steps about endings and the index of sessions.

use super::{DeferredCall, LIFE, Obtained, World, Written};
use crate::{
    cache::{
        Ended, Forgotten, LinkId, StoredLink,
        keys::session_key,
        node::InjectedFault,
        tests::{
            model::{Link, second},
            step::PEOPLE,
        },
    },
    session::{Access, Session, Token},
};

/// The scripts of one operation, which ends with the one that meets the fault, after so many others.
struct Scripts(Option<(usize, InjectedFault)>);

impl Scripts {
    /// Runs the next script in the model, unless it is lost. `Err` if the worker misses its answer.
    fn run<T>(&mut self, script: impl FnOnce() -> T) -> Result<T, ()> {
        match &mut self.0 {
            None => Ok(script()),
            Some((0, InjectedFault::ScriptLost)) => Err(()),
            Some((0, InjectedFault::AnswerLost)) => {
                script();
                Err(())
            }
            Some((before, _)) => {
                *before -= 1;
                Ok(script())
            }
        }
    }
}

impl World {
    /// Takes a link that a claim returned, as a request does: unless the link says that it has an index entry,
    /// the request writes one first. Returns whether the link may be handed out.
    pub(super) async fn take_link(
        &mut self,
        worker: usize,
        person: usize,
        link: StoredLink,
    ) -> bool {
        let stored = self.people[person].link.clone().unwrap();
        let is_indexed = stored.is_indexed;
        let taken = Obtained { person, link: stored.id(), short_lived: false, is_indexed: true };
        assert_eq!(link.id, self.link_id(person, stored.id()), "another link");
        assert_eq!(link.is_indexed, is_indexed, "{stored:?}");
        if !is_indexed {
            let cache = self.workers[worker].cache.clone();
            let has_ended = cache.index(&self.keys(person), link.id, &link.session).await.unwrap();
            assert_eq!(has_ended, self.model_index(taken));
            if has_ended {
                self.people[person].forget(taken.link);
                return false;
            }
            self.workers[worker].recent.push(Written::Index(taken));
        }
        assert!(!self.over.contains(&(person, stored.session)), "{stored:?} has ended");
        self.workers[worker].obtained = Some(taken);
        true
    }

    pub(super) async fn write_index(&mut self, worker: usize, fault: Option<InjectedFault>) {
        let Some(obtained) = self.workers[worker].obtained else { return };
        let Obtained { person, link, short_lived, .. } = obtained;
        if short_lived {
            return;
        }
        let session = self.session(person, link.1);
        self.inject(worker, fault);
        let cache = self.workers[worker].cache.clone();
        let written = cache.index(&self.keys(person), self.link_id(person, link), &session).await;
        let has_ended =
            (fault != Some(InjectedFault::ScriptLost)).then(|| self.model_index(obtained));
        let worker = &mut self.workers[worker];
        match written {
            Ok(written) => {
                assert_eq!(Some(written), has_ended);
                if written {
                    worker.obtained = None;
                    self.people[person].forget(link);
                } else {
                    worker.obtained = Some(Obtained { is_indexed: true, ..obtained });
                    worker.recent.push(Written::Index(obtained));
                }
            }
            Err(_) => {
                assert!(fault.is_some());
                worker.deferred.push(DeferredCall::Index(obtained));
            }
        }
    }

    pub(super) async fn note_indexed(&mut self, worker: usize, fault: Option<InjectedFault>) {
        let Some(obtained) = self.workers[worker].obtained else { return };
        let Obtained { person, link, is_indexed: true, .. } = obtained else { return };
        self.inject(worker, fault);
        let cache = self.workers[worker].cache.clone();
        cache.note_indexed(&self.keys(person), self.link_id(person, link)).await;
        if fault != Some(InjectedFault::ScriptLost) {
            self.people[person].note_indexed(link);
        }
    }

    pub(super) async fn end_until(
        &mut self,
        worker: usize,
        person: usize,
        back: usize,
        fault: Option<InjectedFault>,
    ) {
        let now = self.next_number();
        let last = second(now.saturating_sub(back));
        self.inject(worker, fault);
        let cache = self.workers[worker].cache.clone();
        let keys = self.keys(person);
        let forgotten =
            cache.end(&Ended::Until(&keys, self.made_at(now.saturating_sub(back)))).await;
        let written = Written::EndUntil { person, last };
        if fault != Some(InjectedFault::ScriptLost) {
            let before = self.people[person].link.clone();
            self.model_ending(&written);
            let expected = match (&before, &self.people[person].link) {
                (None, _) => Forgotten::Unknown,
                (Some(_), None) => Forgotten::Yes,
                (Some(_), Some(_)) => Forgotten::Kept,
            };
            assert!(forgotten.is_err() || forgotten == Ok(expected), "{forgotten:?}: {before:?}");
        }
        if forgotten.is_err() {
            // It is delivered again.
            return assert!(fault.is_some());
        }
        self.workers[worker].recent.push(written);
        let lease = self.people[person].lease;
        let attempts = self.workers.iter().filter_map(|worker| worker.attempt.as_ref());
        let being_made = attempts
            .filter(|(attempt, _)| attempt.person == person && lease == Some(attempt.claim))
            .find_map(|(attempt, _)| attempt.session);
        // The worker that holds the lease may be dead.
        let of_dead =
            self.made.iter().filter(|((of, ..), made)| *of == person && lease == Some(made.claim));
        let being_made: Vec<_> =
            being_made.into_iter().chain(of_dead.map(|(_, made)| made.session)).collect();
        let ended =
            (1..=now).filter(|session| second(*session) <= last && !being_made.contains(session));
        self.over.extend(ended.map(|session| (person, session)));
    }

    pub(super) async fn end_session(
        &mut self,
        worker: usize,
        person: usize,
        which: proptest::sample::Index,
        of: Option<usize>,
        fault: Option<(usize, InjectedFault)>,
    ) {
        let Some(session) = self.some_session(person, which) else { return };
        let cache = self.workers[worker].cache.clone();
        let id = self.session_id(person, session);
        let keys = of.map(|of| self.keys(of));
        let (after, injected) = fault.unzip();
        self.inject_after(worker, after.unwrap_or(0), injected);
        let forgotten = cache.end(&Ended::Session(&id, keys.as_ref())).await;
        self.inject(worker, None);
        let expected = self.model_end_session(worker, (person, session), of, Scripts(fault));
        assert_eq!(forgotten.as_ref().map_err(drop), expected.as_ref().map_err(drop));
        if forgotten.is_ok() && of.is_none_or(|of| of == person) {
            self.over.insert((person, session));
        }
    }

    /// Ends a session in the model, as far as the fault permits. `Err` if the worker misses an answer.
    fn model_end_session(
        &mut self,
        worker: usize,
        session: (usize, usize),
        of: Option<usize>,
        mut scripts: Scripts,
    ) -> Result<Forgotten, ()> {
        let entry = scripts.run(|| self.index.entry(session).or_default().end(of))?;
        self.workers[worker].recent.push(Written::EndSession { session, of });
        let Some(person) = entry.map(|(person, _)| person).or(of) else {
            return Ok(Forgotten::Unknown);
        };
        if let Some((_, link)) = entry
            && self.model_forget(worker, person, link, &mut scripts)?
        {
            return Ok(Forgotten::Yes);
        }
        // The stored link is read.
        let link = scripts.run(|| self.people[person].link.as_ref().map(Link::id))?;
        let Some(link) = link.filter(|link| (person, link.1) == session) else {
            return Ok(Forgotten::Unknown);
        };
        let is_forgotten = self.model_forget(worker, person, link, &mut scripts)?;
        Ok(if is_forgotten { Forgotten::Yes } else { Forgotten::Unknown })
    }

    /// Forgets a link in the model. Returns whether it was there.
    fn model_forget(
        &mut self,
        worker: usize,
        person: usize,
        link: (usize, usize),
        scripts: &mut Scripts,
    ) -> Result<bool, ()> {
        let is_forgotten = scripts.run(|| self.people[person].forget(link))?;
        self.workers[worker].recent.push(Written::Forget { person, link });
        Ok(is_forgotten)
    }

    /// A session of the person: one that was stored, is being made, or is handed out.
    fn some_session(&self, person: usize, which: proptest::sample::Index) -> Option<usize> {
        let stored = self.people[person].link.iter().map(|link| link.session);
        let of_workers = self.workers.iter().flat_map(|worker| {
            let attempt = worker.attempt.as_ref().map(|(attempt, _)| *attempt);
            let attempt = attempt.filter(|attempt| attempt.person == person);
            let obtained = worker.obtained.filter(|obtained| obtained.person == person);
            let session = attempt.and_then(|attempt| attempt.session);
            session.into_iter().chain(obtained.map(|obtained| obtained.link.1))
        });
        let made = self.made.iter().filter(|((of, ..), _)| *of == person);
        let mut made: Vec<_> = made.map(|(_, made)| made.session).collect();
        // The same in each run.
        made.sort_unstable();
        let sessions: Vec<_> = stored.chain(of_workers).chain(made).collect();
        (!sessions.is_empty()).then(|| sessions[which.index(sessions.len())])
    }

    /// Writes an index entry in the model. Returns whether the session has ended.
    pub(super) fn model_index(&mut self, obtained: Obtained) -> bool {
        let Obtained { person, link, .. } = obtained;
        self.index.entry((person, link.1)).or_default().write(person, link)
    }

    pub(super) fn has_index_entry(&self, Obtained { person, link, .. }: Obtained) -> bool {
        self.index.get(&(person, link.1)).is_some_and(|index| *index != Default::default())
    }

    pub(super) fn model_ending(&mut self, written: &Written) {
        match *written {
            Written::EndUntil { person, last } => {
                let number = self.next_number();
                self.people[person].end_until(number, last);
            }
            Written::EndSession { session, of } => {
                self.index.entry(session).or_default().end(of);
            }
            Written::Forget { person, link } => {
                self.people[person].forget(link);
            }
            Written::Link(..) | Written::Index(_) => {}
        }
    }

    pub(super) fn session(&self, person: usize, session: usize) -> Session {
        let Token { value, expires_at } = self.token(person, 0, LIFE);
        Session {
            access: Access::Token(value),
            id: self.session_id(person, session),
            made_at: self.made_at(session),
            expires_at,
        }
    }

    pub(super) fn link_id(&self, person: usize, (request, session): (usize, usize)) -> LinkId {
        LinkId::new(&self.stamp(person, request), self.made_at(session))
    }

    /// Asserts that Redis holds the index entries and marks of the model.
    pub(super) async fn compare_endings(&mut self) {
        for person in 0..PEOPLE {
            let key = self.keys(person).mark.clone();
            let (mark, ttl_ms) = self.read(&key).await;
            let last = mark.map(|mark| {
                let mark = String::from_utf8(mark).unwrap();
                let (number, last) = mark.split_once(':').unwrap();
                let expected = self.people[person].mark.unwrap().number;
                let known = self.marks.entry((person, expected)).or_insert(number.to_owned());
                assert_eq!(known, number, "the mark of {person}");
                last.parse().unwrap()
            });
            assert_eq!(last, self.people[person].mark.map(|mark| mark.last), "{person}");
            assert!(last.is_none() || ttl_ms > 0, "{ttl_ms} ms");
        }
        let keys: Vec<_> = self.index.keys().copied().collect();
        for (person, session) in keys {
            let index = self.index[&(person, session)].clone();
            let key = session_key(&self.redis.prefix, &self.session_id(person, session));
            let (stored, ttl_ms) = self.read(&key).await;
            let mut expected = vec![if index.has_ended { b'!' } else { b'i' }];
            if let Some((of, link)) = index.entry {
                let hash = self.keys(of).hash;
                expected.extend(hash);
                let bytes = |link| {
                    let link = self.link_id(of, link);
                    let entry = crate::cache::keys::IndexEntry { hash, link };
                    entry.to_bytes()[1 + hash.len()..].to_vec()
                };
                expected.extend(link.map(bytes).unwrap_or_default());
            }
            let expected = (index != Default::default()).then_some(expected);
            assert_eq!(stored, expected, "the entry of session {session} of {person}");
            assert!(stored.is_none() || ttl_ms > 0, "{ttl_ms} ms");
        }
    }

    async fn read(&self, key: &str) -> (Option<Vec<u8>>, i64) {
        let mut read = deadpool_redis::redis::pipe();
        read.cmd("GET").arg(key).cmd("PTTL").arg(key);
        read.query_async(&mut self.redis.connection.clone()).await.unwrap()
    }
}
