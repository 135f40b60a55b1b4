//! What Redis does for one person, in a few lines of Rust.

/// Claims, tokens and sessions are numbered in the order they were made; a request by its place among
/// the person's requests.
#[derive(Debug, Default)]
pub(super) struct Person {
    /// The claim that holds the lease.
    pub(super) lease: Option<usize>,
    pub(super) token: Option<usize>,
    pub(super) link: Option<Link>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) session: usize,
    /// The requests it was made for, newest first.
    pub(super) made_for: Vec<usize>,
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
        let is_allowed = match (self.lease, call.overwrite) {
            (Some(holder), _) if holder == call.claim && is_newer => {
                self.lease = None;
                self.token = None;
                return false;
            }
            (Some(holder), _) if holder == call.claim => true,
            _ if is_stored => return true,
            (Some(_), _) => false,
            (None, Overwrite::Any) => !is_newer,
            (None, Overwrite::Seen(_)) => !is_unseen,
        };
        if is_allowed {
            if !call.short_lived && !is_stored {
                let earlier = self.link.take().map(|link| link.made_for).unwrap_or_default();
                let mut made_for = vec![call.request];
                made_for.extend(earlier.into_iter().take(15));
                self.link = Some(Link { session: call.session, made_for });
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
}
