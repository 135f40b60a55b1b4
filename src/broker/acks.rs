//! Acknowledgements of a channel, several in one word where that says the same.
//!
//! RabbitMQ lets a consumer acknowledge all deliveries up to one at once, and has less to write down
//! then. So what is due at the same moment goes together, as far as no delivery before it is still at
//! work. Nothing waits for others to become due.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use lapin::{Channel, options::BasicAckOptions};
use tokio::sync::Notify;

/// A channel that deliveries come from, and which of them are at work.
pub(super) struct Acks {
    channel: Channel,
    ledger: Mutex<Ledger>,
    due: Notify,
}

impl Acks {
    /// Nothing is acknowledged by [`Self::ack`] until somebody sends.
    pub(super) fn new(channel: Channel) -> Arc<Self> {
        Arc::new(Self { channel, ledger: Mutex::default(), due: Notify::new() })
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delivery has come. They come in the order of their tags.
    pub(super) fn came(&self, tag: u64) {
        self.ledger().came(tag);
    }

    /// A delivery was settled by a word of its own.
    pub(super) fn settled(&self, tag: u64) {
        self.ledger().settled(tag);
    }

    /// Acknowledges a delivery when [`Self::keep_sending`] has its turn, with all that are due by then.
    /// `false` where the channel is gone.
    pub(super) fn ack(&self, tag: u64) -> bool {
        self.ledger().done(tag);
        self.due.notify_one();
        self.channel.status().connected()
    }

    /// Sends what is due, whenever something is. Never ends.
    pub(super) async fn keep_sending(self: Arc<Self>) {
        loop {
            self.due.notified().await;
            self.send();
        }
    }

    /// Sends what is due. It is on its way then: there is no answer to it.
    pub(super) fn send(&self) {
        // Held until all are sent: what two senders took could change places, and RabbitMQ closes a
        // channel on which a delivery is settled twice.
        let mut ledger = self.ledger();
        for Word { tag, multiple } in ledger.due() {
            let word = self.channel.basic_ack(tag, BasicAckOptions { multiple });
            // Not waited for; where the channel is gone, all of it is redelivered.
            let _ = word.now_or_never();
        }
    }
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    tag: u64,
    /// And of all before it.
    multiple: bool,
}

/// Which deliveries of a channel are at work, and which are to be acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    at_work: BTreeSet<u64>,
    done: Vec<u64>,
    latest: u64,
    /// The first that never came here. There should be none; but if one got lost between the library
    /// and us, no word may cover it, so from there on each goes by itself.
    missing: Option<u64>,
}

impl Ledger {
    fn came(&mut self, tag: u64) {
        if tag != self.latest + 1 {
            self.missing.get_or_insert(self.latest + 1);
        }
        self.latest = tag;
        self.at_work.insert(tag);
    }

    fn settled(&mut self, tag: u64) {
        self.at_work.remove(&tag);
    }

    fn done(&mut self, tag: u64) {
        self.at_work.remove(&tag);
        self.done.push(tag);
    }

    /// The fewest words for all that is done.
    fn due(&mut self) -> Vec<Word> {
        let open = self.at_work.first().copied().into_iter().chain(self.missing).min();
        let is_after_open = |tag: &u64| open.is_some_and(|open| *tag > open);
        let (alone, together): (Vec<_>, Vec<_>) = self.done.drain(..).partition(is_after_open);
        let multiple = together.len() > 1;
        let together = together.into_iter().max().map(|tag| Word { tag, multiple });
        alone.into_iter().map(|tag| Word { tag, multiple: false }).chain(together).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Come { missed: u64 },
        Done(prop::sample::Index),
        Settled(prop::sample::Index),
        Send,
    }

    fn rpc() -> impl Strategy<Value = Step> {
        let missed = prop_oneof![9 => Just(0), 1 => 1u64..3];
        prop_oneof![
            4 => missed.prop_map(|missed| Step::Come { missed }),
            4 => any::<prop::sample::Index>().prop_map(Step::Done),
            1 => any::<prop::sample::Index>().prop_map(Step::Settled),
            1 => Just(Step::Send),
        ]
    }

    /// What RabbitMQ makes of a word, which must be about something that it waits for.
    fn hear(unsettled: &mut BTreeSet<u64>, Word { tag, multiple }: Word) -> BTreeSet<u64> {
        assert!(unsettled.contains(&tag), "{tag} is settled twice");
        let first = if multiple { 0 } else { tag };
        let heard: BTreeSet<_> = unsettled.range(first..=tag).copied().collect();
        unsettled.retain(|tag| !heard.contains(tag));
        heard
    }

    proptest! {
        #[test]
        fn what_is_done_is_acknowledged_once_and_nothing_else(
            steps in prop::collection::vec(rpc(), 0..100),
        ) {
            let mut ledger = Ledger::default();
            // RabbitMQ's side: what it has delivered, and what of that is not settled.
            let (mut latest, mut unsettled) = (0, BTreeSet::new());
            let (mut at_work, mut done) = (Vec::new(), BTreeSet::new());
            for rpc in steps.into_iter().chain([Step::Send]) {
                match rpc {
                    Step::Come { missed } => {
                        unsettled.extend(latest + 1..=latest + 1 + missed);
                        latest += 1 + missed;
                        ledger.came(latest);
                        at_work.push(latest);
                    }
                    Step::Done(which) if !at_work.is_empty() => {
                        let tag = at_work.swap_remove(which.index(at_work.len()));
                        ledger.done(tag);
                        done.insert(tag);
                    }
                    Step::Settled(which) if !at_work.is_empty() => {
                        let tag = at_work.swap_remove(which.index(at_work.len()));
                        unsettled.remove(&tag);
                        ledger.settled(tag);
                    }
                    Step::Done(_) | Step::Settled(_) => {}
                    Step::Send => {
                        let mut heard = BTreeSet::new();
                        for word in ledger.due() {
                            heard.extend(hear(&mut unsettled, word));
                        }
                        prop_assert_eq!(&heard, &done);
                        done.clear();
                    }
                }
            }
        }
    }

    #[test]
    fn those_before_all_that_are_at_work_go_together() {
        let mut ledger = Ledger::default();
        (1..=9).for_each(|tag| ledger.came(tag));
        for tag in [4, 2, 1, 9, 3, 7] {
            ledger.done(tag);
        }
        let mut words = ledger.due();
        words.sort_unstable_by_key(|word| word.tag);
        let word = |tag, multiple| Word { tag, multiple };
        assert_eq!(words, [word(4, true), word(7, false), word(9, false)]);
        assert!(ledger.due().is_empty());
        (5..=6).for_each(|tag| ledger.done(tag));
        assert_eq!(ledger.due(), [word(6, true)]);
        ledger.done(8);
        assert_eq!(ledger.due(), [word(8, false)]);
    }
}
