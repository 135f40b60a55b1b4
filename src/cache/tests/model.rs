//! What Redis does for one person, in a few lines of Rust.

/// Claims, tokens and sessions are numbered in the order they were made; a request by its place among
/// the person's requests.
#[derive(Debug, Default)]
pub(super) struct Person {
    /// The claim that holds the lease.
    pub(super) lease: Option<usize>,
    pub(super) token: Option<usize>,
    pub(super) link: Option<Link>,
    pub(super) mark: Option<Mark>,
}

/// The mark of an ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Distinguishes the marks.
    pub(super) number: usize,
    /// The last second whose sessions have ended.
    pub(super) last: usize,
}

/// Sessions are made this often, so that some are made in the same second.
pub(super) const SESSION_INTERVAL_MS: usize = 100;

/// The second in which a session is made.
pub(super) fn second(session: usize) -> usize {
    session * SESSION_INTERVAL_MS / 1_000
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) session: usize,
    /// The requests it was made for, newest first.
    pub(super) made_for: Vec<usize>,
    /// Whether it says that its session has an index entry.
    pub(super) is_indexed: bool,
}

impl Link {
    /// The request and the session, which identify it.
    pub(super) fn id(&self) -> (usize, usize) {
        (self.made_for[0], self.session)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Freshness {
    Any,
    SinceRequest,
    OtherThan(usize),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Link(usize),
    Lease { token: Option<usize>, newest: Option<usize> },
    LeaseTaken { newest: Option<usize> },
}

/// A call that stores a link.
#[derive(Clone, Debug)]
pub(super) struct StoreCall {
    pub(super) claim: usize,
    pub(super) request: usize,
    pub(super) session: usize,
    pub(super) overwrite: Overwrite,
    /// The number of the mark at the claim, if it is known.
    pub(super) mark: Option<usize>,
    pub(super) late: bool,
    /// It writes the session's index entry, too.
    pub(super) with_entry: bool,
    /// Too close to its end to be handed out again.
    pub(super) short_lived: bool,
}

/// Which link may be replaced once no claim holds the lease.
#[derive(Clone, Copy, Debug)]
pub(super) enum Overwrite {
    Any,
    /// The link seen at the claim, by the newest request it was made for.
    Seen(Option<usize>),
}

impl Person {
    pub(super) fn newest(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.made_for[0])
    }

    pub(super) fn claim(&mut self, claim: usize, request: usize, freshness: Freshness) -> Answer {
        let newest = self.newest();
        if let Some(link) = &self.link {
            let is_fresh = match freshness {
                Freshness::Any => true,
                Freshness::SinceRequest => link.made_for.contains(&request),
                Freshness::OtherThan(known) => newest != Some(known),
            };
            if is_fresh {
                return Answer::Link(link.session);
            }
        }
        if self.lease.is_some_and(|holder| holder != claim) {
            return Answer::LeaseTaken { newest };
        }
        self.lease = Some(claim);
        Answer::Lease { token: self.token, newest }
    }

    /// Returns whether the call went through, and so whether the lease has ended.
    pub(super) fn store(&mut self, call: &StoreCall) -> bool {
        let is_stored = self
            .link
            .as_ref()
            .is_some_and(|link| (link.session, link.made_for[0]) == (call.session, call.request));
        let is_unseen = self.link.is_some()
            && !matches!(call.overwrite, Overwrite::Seen(newest) if self.newest() == newest);
        let is_newer =
            is_unseen && self.link.as_ref().is_some_and(|link| link.session > call.session);
        let is_ended = (call.late || self.lease != Some(call.claim))
            && self.mark.is_some_and(|mark| {
                Some(mark.number) != call.mark && second(call.session) <= mark.last
            });
        let is_allowed = match (self.lease, call.overwrite) {
            (Some(holder), _) if holder == call.claim && (is_newer || (is_ended && !is_stored)) => {
                self.lease = None;
                self.token = None;
                return false;
            }
            (Some(holder), _) if holder == call.claim => true,
            _ if is_stored => return true,
            (Some(_), _) => false,
            _ if is_ended => false,
            (None, Overwrite::Any) => !is_newer,
            (None, Overwrite::Seen(_)) => !is_unseen,
        };
        if is_allowed {
            if !call.short_lived && !is_stored {
                let earlier = self.link.take().map(|link| link.made_for).unwrap_or_default();
                let mut made_for = vec![call.request];
                made_for.extend(earlier.into_iter().take(15));
                self.link =
                    Some(Link { session: call.session, made_for, is_indexed: call.with_entry });
            }
            self.lease = None;
            self.token = None;
        }
        is_allowed
    }

    pub(super) fn save_token(&mut self, claim: usize, token: usize) {
        if self.lease == Some(claim) {
            self.token = Some(token);
        }
    }

    pub(super) fn release(&mut self, claim: usize, drop_token: bool) {
        if self.lease == Some(claim) {
            self.lease = None;
            if drop_token {
                self.token = None;
            }
        }
    }

    /// Returns whether there is a link to add the request to.
    pub(super) fn add_stamp(&mut self, request: usize) -> bool {
        let Some(link) = &mut self.link else { return false };
        if !link.made_for.contains(&request) {
            link.made_for.insert(1, request);
            link.made_for.truncate(16);
        }
        true
    }

    /// Forgets what was made until the end of the second `last`. Returns whether there is a link, and whether it is forgotten.
    pub(super) fn end_until(&mut self, number: usize, last: usize) -> (bool, bool) {
        let marked = self.mark.map_or(0, |mark| mark.last);
        self.mark = Some(Mark { number, last: last.max(marked) });
        if self.lease.is_none() {
            self.token = None;
        }
        let link = self.link.take();
        let kept = link.clone().filter(|link| second(link.session) > last);
        let is_forgotten = link.is_some() && kept.is_none();
        self.link = kept;
        (link.is_some(), is_forgotten)
    }

    /// Returns whether there was such a link.
    pub(super) fn forget(&mut self, id: (usize, usize)) -> bool {
        let is_there = self.link.as_ref().is_some_and(|link| link.id() == id);
        if is_there {
            self.link = None;
            if self.lease.is_none() {
                self.token = None;
            }
        }
        is_there
    }

    pub(super) fn note_indexed(&mut self, id: (usize, usize)) {
        if let Some(link) = self.link.as_mut().filter(|link| link.id() == id) {
            link.is_indexed = true;
        }
    }
}

/// The index entry of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// The person, if it is known, and the link.
    pub(super) entry: Option<(usize, Option<(usize, usize)>)>,
    pub(super) has_ended: bool,
}

impl Index {
    /// Returns whether the session has ended.
    pub(super) fn write(&mut self, person: usize, link: (usize, usize)) -> bool {
        if self.has_ended && self.entry.is_some_and(|(of, _)| of != person) {
            return false;
        }
        self.entry = Some((person, Some(link)));
        self.has_ended
    }

    /// Returns the session's link, if it is that of the person.
    pub(super) fn end(&mut self, of: Option<usize>) -> Option<(usize, (usize, usize))> {
        match self.entry {
            Some((person, Some(link))) => {
                if of.is_some_and(|of| of != person) {
                    return None;
                }
                self.has_ended = true;
                Some((person, link))
            }
            known => {
                let known = known.map(|(person, _)| person);
                let person = if !self.has_ended || known == of { of } else { None };
                *self = Self { entry: person.map(|person| (person, None)), has_ended: true };
                None
            }
        }
    }
}
