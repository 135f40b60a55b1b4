//! What Redis does for one person, said again in a few lines of Rust.

/// Everything is known by a number: claims, tokens and sessions in the order they were made, requests
/// by which of the person's they are.
#[derive(Debug, Default)]
pub(super) struct Person {
    /// The claim that has the lease.
    pub(super) lease: Option<usize>,
    pub(super) token: Option<usize>,
    pub(super) link: Option<Link>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) session: usize,
    /// The requests it was made for, the newest first.
    pub(super) made_for: Vec<usize>,
}

/// Which link will do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    Any,
    OwnOrNewer,
    OtherThan(usize),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Link(usize),
    Lease { token: Option<usize>, newest: Option<usize> },
    Held { newest: Option<usize> },
}

/// A link that is to be stored, and what it may be stored over where the lease is nobody's.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) claim: usize,
    pub(super) request: usize,
    pub(super) session: usize,
    pub(super) over: Over,
    /// It is about to end, and so not to be handed out again.
    pub(super) short: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Over {
    Anything,
    /// What was there at the claim, by the newest request it was made for.
    Seen(Option<usize>),
}

impl Person {
    pub(super) fn newest(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.made_for[0])
    }

    pub(super) fn claim(&mut self, claim: usize, request: usize, wanted: Wanted) -> Answer {
        let newest = self.newest();
        if let Some(link) = &self.link {
            let will_do = match wanted {
                Wanted::Any => true,
                Wanted::OwnOrNewer => link.made_for.contains(&request),
                Wanted::OtherThan(other) => newest != Some(other),
            };
            if will_do {
                return Answer::Link(link.session);
            }
        }
        match self.lease {
            Some(_) => Answer::Held { newest },
            None => {
                self.lease = Some(claim);
                Answer::Lease { token: self.token, newest }
            }
        }
    }

    /// Whether the link is stored.
    pub(super) fn store(&mut self, store: &Store) -> bool {
        let may = match (self.lease, store.over) {
            (Some(holder), _) => holder == store.claim,
            (None, Over::Anything) => true,
            (None, Over::Seen(newest)) => self.link.is_none() || self.newest() == newest,
        };
        if may {
            if !store.short {
                let earlier = self.link.take().map(|link| link.made_for).unwrap_or_default();
                let mut made_for = vec![store.request];
                made_for.extend(earlier.into_iter().take(15));
                self.link = Some(Link { session: store.session, made_for });
            }
            (self.lease, self.token) = (None, None);
        }
        may
    }

    pub(super) fn save(&mut self, claim: usize, token: usize) {
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

    /// Whether there is a link that the request is named on from now on.
    pub(super) fn stamp(&mut self, request: usize) -> bool {
        let Some(link) = &mut self.link else { return false };
        if !link.made_for.contains(&request) {
            link.made_for.insert(1, request);
            link.made_for.truncate(16);
        }
        true
    }
}
