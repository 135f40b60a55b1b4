//! A model of `take_calls.lua`, by any clock. A test of the cache compares the two.

/// The constants of the bucket, and what is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateModel {
    every: i64,
    most: i64,
    turn_calls: i64,
    kept: i64,
    full: Option<i64>,
    /// Whether release 0.1 stored `full`.
    is_full_of_0_1: bool,
    line: Option<i64>,
}

/// The reply of the script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModelReply {
    pub(crate) granted: i64,
    pub(crate) wait_micros: i64,
    /// Time and calls.
    pub(crate) turn: (i64, i64),
}

impl RateModel {
    /// Times in microseconds.
    pub(crate) fn new(every: i64, most: i64, turn_calls: i64, kept: i64) -> Self {
        Self { every, most, turn_calls, kept, full: None, is_full_of_0_1: false, line: None }
    }

    /// Forgets everything, as Redis does when it restarts.
    pub(crate) fn clear(&mut self) {
        (self.full, self.line) = (None, None);
    }

    /// Forgets what has expired by this time. Returns whether the bucket and the line are stored.
    pub(crate) fn expire(&mut self, now: i64) -> (bool, bool) {
        let is_live = |time: &i64| *time + self.kept > now;
        self.full = self.full.filter(is_live);
        self.line = self.line.filter(is_live);
        (self.full.is_some(), self.line.is_some())
    }

    /// Calls gained from one time to another.
    fn gained(&self, from: i64, to: i64) -> i64 {
        ((to - from).div_euclid(self.every) + 1).max(0)
    }

    fn first(&self, full: i64) -> i64 {
        full - (self.most - 1) * self.every
    }

    /// `take_calls.lua` at this time.
    pub(crate) fn take(&mut self, now: i64, wanted: i64, turn: (i64, i64)) -> ModelReply {
        let (every, most, kept) = (self.every, self.most, self.kept);
        let (mut at, mut calls) = turn;
        self.expire(now);
        let mut full = self.full.unwrap_or(0).min(now + most * every);
        let is_asked_by_0_1 = full > now && self.is_full_of_0_1;
        let mut first = self.first(full);
        let (mut granted, mut line, mut unused) = (wanted, first, 0);
        let mut stored = line;
        let is_due = (now - kept..=now).contains(&at);
        if wanted > 0 {
            let longest = now + (2 * most * every).max(600_000_000);
            stored = self.line.unwrap_or(0).min(longest);
            line = stored.max(first);
            let due = if is_due { calls } else { 0 };
            let in_line = -(first - line).div_euclid(every);
            unused = self.gained(first, now - kept).min(in_line);
            granted = wanted
                .min(self.gained(first, now))
                .min(most)
                .min(due + unused + self.gained(line, now));
            line += (granted - due - unused).max(0) * every;
        }
        if granted != 0 {
            full = full.max(now) + granted * every;
            first = self.first(full);
            self.full = (full > now).then_some(full);
            self.is_full_of_0_1 = false;
        }
        let mut wait = 0;
        if granted < wanted {
            let is_early = at > now && at < line;
            let is_late = is_due && granted == 0 && first <= at + kept.min(8 * every);
            if !is_early && !is_late {
                calls = (wanted - granted).min(self.turn_calls);
                line = line.max(first);
                let turns = (-(first - line).div_euclid(every)).max(1);
                if is_asked_by_0_1 && line.div_euclid(every) % turns == 0 {
                    line += every;
                }
                at = line + (calls - 1) * every;
                line = at + every;
            }
            wait = at.max(first).max(now) - now;
        } else {
            (at, calls) = (0, 0);
        }
        if unused > 0 && (wait == 0 || wait > first + kept - now) {
            wait = (first + kept - now).max(0);
        }
        if line > stored.max(first) {
            self.line = Some(line);
        }
        ModelReply { granted, wait_micros: wait, turn: (at, calls) }
    }

    /// The script of release 0.1, which `make fleet` runs alongside. Returns the calls granted, and the time until the next.
    #[cfg(feature = "fleet")]
    pub(crate) fn take_as_0_1(&mut self, now: i64, wanted: i64) -> (i64, i64) {
        let room = self.most * self.every;
        let full = self.full.unwrap_or(0).clamp(now, now + room);
        let granted = wanted.min((now + room - full) / self.every);
        let full = (full + granted * self.every).max(now);
        self.full = (full > now).then_some(full);
        self.is_full_of_0_1 = true;
        (granted, (full + self.every - room - now).max(0))
    }
}
