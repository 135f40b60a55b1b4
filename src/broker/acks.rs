//! Batches acks with `multiple=true` when no earlier delivery is unsettled.
//!
//! One `basic.ack` for several deliveries is less work for RabbitMQ, which then writes fewer log
//! entries for a quorum queue. Only acks that are pending at the same moment are batched: none
//! waits for others.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt;
use lapin::{Channel, options::BasicAckOptions};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// A consuming channel and the state of its deliveries.
pub(super) struct Acks {
    pub(super) channel: Channel,
    pub(super) ledger: Mutex<Ledger>,
    pending: Notify,
}

impl Acks {
    /// Acks are sent by [`Self::run`] or [`Self::send_pending`] only.
    pub(super) fn new(channel: Channel) -> Arc<Self> {
        Arc::new(Self { channel, ledger: Mutex::default(), pending: Notify::new() })
    }

    /// Queues an ack. Returns `false` if the channel is closed.
    pub(super) fn ack(&self, tag: u64) -> bool {
        self.ledger.lock().acked(tag);
        self.pending.notify_one();
        self.channel.status().connected()
    }

    /// Sends pending acks whenever there are any. Never returns.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.pending.notified().await;
            self.send_pending();
        }
    }

    /// Writes all pending acks to the channel. RabbitMQ does not answer acks.
    pub(super) fn send_pending(&self) {
        // The lock is held while sending: otherwise a `multiple` ack of one sender could overtake
        // an ack of another that it covers, and RabbitMQ closes a channel that acks a delivery
        // twice.
        let mut ledger = self.ledger.lock();
        for Ack { tag, multiple } in ledger.take_pending() {
            // The first poll queues the frame in lapin. If the channel is closed, RabbitMQ
            // redelivers.
            let _ = self.channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never();
        }
    }
}

/// A `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ack {
    tag: u64,
    /// Acks every earlier delivery of the channel, too.
    multiple: bool,
}

/// Which deliveries of a channel are unsettled, and which have a pending ack.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    unsettled: BTreeSet<u64>,
    pending: Vec<u64>,
    latest: u64,
    /// The first delivery tag that was skipped.
    /// lapin should pass on every delivery. If it ever loses one, no `multiple` ack may cover it,
    /// so each later delivery is acked individually.
    missing: Option<u64>,
}

impl Ledger {
    /// Records a delivery. Must be called in the order of delivery tags.
    pub(super) fn delivered(&mut self, tag: u64) {
        if tag != self.latest + 1 {
            self.missing.get_or_insert(self.latest + 1);
        }
        self.latest = tag;
        self.unsettled.insert(tag);
    }

    /// Records that a delivery was settled by its own ack, nack or reject.
    pub(super) fn settled(&mut self, tag: u64) {
        self.unsettled.remove(&tag);
    }

    /// The number of unsettled deliveries.
    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    fn acked(&mut self, tag: u64) {
        self.unsettled.remove(&tag);
        self.pending.push(tag);
    }

    /// The fewest acks that cover everything pending.
    fn take_pending(&mut self) -> Vec<Ack> {
        let first_unsettled = self.unsettled.first().copied().into_iter().chain(self.missing).min();
        let after_unsettled = |tag: &u64| first_unsettled.is_some_and(|first| *tag > first);
        let (single, batch): (Vec<_>, Vec<_>) = self.pending.drain(..).partition(after_unsettled);
        let multiple = batch.len() > 1;
        let batch = batch.into_iter().max().map(|tag| Ack { tag, multiple });
        single.into_iter().map(|tag| Ack { tag, multiple: false }).chain(batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum LedgerAction {
        Deliver { lost: u64 },
        Ack(prop::sample::Index),
        Settle(prop::sample::Index),
        Send,
    }

    fn ledger_action() -> impl Strategy<Value = LedgerAction> {
        let lost = prop_oneof![9 => Just(0), 1 => 1u64..3];
        prop_oneof![
            4 => lost.prop_map(|lost| LedgerAction::Deliver { lost }),
            4 => any::<prop::sample::Index>().prop_map(LedgerAction::Ack),
            1 => any::<prop::sample::Index>().prop_map(LedgerAction::Settle),
            1 => Just(LedgerAction::Send),
        ]
    }

    /// What RabbitMQ removes for an ack. For an unknown tag it would close the channel.
    fn receive(unsettled: &mut BTreeSet<u64>, Ack { tag, multiple }: Ack) -> BTreeSet<u64> {
        assert!(unsettled.contains(&tag), "{tag} is settled twice");
        let first = if multiple { 0 } else { tag };
        let acked: BTreeSet<_> = unsettled.range(first..=tag).copied().collect();
        unsettled.retain(|tag| !acked.contains(tag));
        acked
    }

    proptest! {
        #[test]
        fn each_acked_delivery_is_acked_once_and_no_other(
            actions in prop::collection::vec(ledger_action(), 0..100),
        ) {
            let mut ledger = Ledger::default();
            // RabbitMQ's side: the latest delivery, and the unsettled ones.
            let mut latest = 0;
            let mut unsettled = BTreeSet::new();
            let mut in_flight = Vec::new();
            let mut expected = BTreeSet::new();
            for action in actions.into_iter().chain([LedgerAction::Send]) {
                match action {
                    LedgerAction::Deliver { lost } => {
                        unsettled.extend(latest + 1..=latest + 1 + lost);
                        latest += 1 + lost;
                        ledger.delivered(latest);
                        in_flight.push(latest);
                    }
                    LedgerAction::Ack(which) if !in_flight.is_empty() => {
                        let tag = in_flight.swap_remove(which.index(in_flight.len()));
                        ledger.acked(tag);
                        expected.insert(tag);
                    }
                    LedgerAction::Settle(which) if !in_flight.is_empty() => {
                        let tag = in_flight.swap_remove(which.index(in_flight.len()));
                        unsettled.remove(&tag);
                        ledger.settled(tag);
                    }
                    LedgerAction::Ack(_) | LedgerAction::Settle(_) => {}
                    LedgerAction::Send => {
                        let mut acked = BTreeSet::new();
                        for ack in ledger.take_pending() {
                            acked.extend(receive(&mut unsettled, ack));
                        }
                        prop_assert_eq!(&acked, &expected);
                        expected.clear();
                    }
                }
            }
        }
    }

    #[test]
    fn acks_before_the_first_unsettled_delivery_are_batched() {
        let mut ledger = Ledger::default();
        (1..=9).for_each(|tag| ledger.delivered(tag));
        for tag in [4, 2, 1, 9, 3, 7] {
            ledger.acked(tag);
        }
        let mut acks = ledger.take_pending();
        acks.sort_unstable_by_key(|ack| ack.tag);
        let ack = |tag, multiple| Ack { tag, multiple };
        assert_eq!(acks, [ack(4, true), ack(7, false), ack(9, false)]);
        assert!(ledger.take_pending().is_empty());
        (5..=6).for_each(|tag| ledger.acked(tag));
        assert_eq!(ledger.take_pending(), [ack(6, true)]);
        ledger.acked(8);
        assert_eq!(ledger.take_pending(), [ack(8, false)]);
    }
}
