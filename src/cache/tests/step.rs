//! The steps that the test takes, in any order.

use proptest::{prelude::*, sample::Index};

use super::model::Freshness;
use crate::cache::node::InjectedFault;

pub(super) const WORKERS: usize = 3;
pub(super) const PEOPLE: usize = 2;
/// Few, so that requests are repeated as after a redelivery.
pub(super) const REQUESTS: usize = 4;

/// One step. A step that does not apply to the state of its worker is skipped.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Claim {
        worker: usize,
        person: usize,
        request: usize,
        freshness: Freshness,
        fault: Option<InjectedFault>,
    },
    /// The worker repeats a claim that was not answered.
    RepeatClaim {
        worker: usize,
        freshness: Freshness,
        fault: Option<InjectedFault>,
    },
    SaveToken {
        worker: usize,
        fault: Option<InjectedFault>,
    },
    Extend {
        worker: usize,
        fault: Option<InjectedFault>,
    },
    /// The platform makes the session, which may be stored much later.
    MakeSession {
        worker: usize,
    },
    /// The worker repeats a call of an earlier one, and the index entry reaches Redis before the link.
    IndexEarly {
        worker: usize,
    },
    Store {
        worker: usize,
        short_lived: bool,
        other: bool,
        fault: Option<InjectedFault>,
    },
    Release {
        worker: usize,
        drop_token: bool,
        fault: Option<InjectedFault>,
    },
    /// A request is served with the stored link.
    AddStamp {
        worker: usize,
        person: usize,
        request: usize,
        fault: Option<InjectedFault>,
    },
    /// A new worker replaces one that died.
    Crash {
        worker: usize,
    },
    /// The worker reconnects and runs its deferred scripts.
    RunDeferred {
        worker: usize,
    },
    /// The worker's connection fails, so that it will store again what it stored a moment ago.
    RepeatRecent {
        worker: usize,
    },
    /// The worker writes the index entry of the link that it hands out.
    Index {
        worker: usize,
        fault: Option<InjectedFault>,
    },
    /// It notes so in the link.
    NoteIndexed {
        worker: usize,
        fault: Option<InjectedFault>,
    },
    /// The verification of a person has ended, so many numbers ago.
    EndUntil {
        worker: usize,
        person: usize,
        back: usize,
        fault: Option<InjectedFault>,
    },
    /// A session has ended: one of a person's, for whom or for all. The fault concerns one of three scripts.
    EndSession {
        worker: usize,
        person: usize,
        which: Index,
        of: Option<usize>,
        fault: Option<(usize, InjectedFault)>,
    },
    /// A script that seemed lost reaches Redis after all.
    ArriveLate {
        which: Index,
    },
    /// The lease expires, as it does if its worker is dead or stalled.
    ExpireLease {
        person: usize,
    },
    /// Redis loses the link and the token.
    LoseData {
        person: usize,
    },
}

fn fault() -> impl Strategy<Value = Option<InjectedFault>> {
    prop_oneof![
        6 => Just(None),
        1 => Just(Some(InjectedFault::ScriptLost)),
        1 => Just(Some(InjectedFault::AnswerLost)),
    ]
}

fn freshness() -> impl Strategy<Value = Freshness> {
    prop_oneof![
        Just(Freshness::Any),
        Just(Freshness::SinceRequest),
        (0..REQUESTS).prop_map(Freshness::OtherThan),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let worker = 0..WORKERS;
    let person = 0..PEOPLE;
    let of_request = (worker.clone(), person.clone(), 0..REQUESTS);
    prop_oneof![
        8 => (of_request.clone(), freshness(), fault()).prop_map(
            |((worker, person, request), freshness, fault)| {
                Step::Claim { worker, person, request, freshness, fault }
            }
        ),
        4 => (worker.clone(), fault()).prop_map(|(worker, fault)| Step::SaveToken { worker, fault }),
        4 => (worker.clone(), fault()).prop_map(|(worker, fault)| Step::Extend { worker, fault }),
        4 => worker.clone().prop_map(|worker| Step::MakeSession { worker }),
        2 => worker.clone().prop_map(|worker| Step::IndexEarly { worker }),
        6 => (worker.clone(), prop::bool::weighted(0.1), any::<bool>(), fault()).prop_map(
            |(worker, short_lived, other, fault)| {
                Step::Store { worker, short_lived, other, fault }
            }
        ),
        2 => (worker.clone(), any::<bool>(), fault())
            .prop_map(|(worker, drop_token, fault)| Step::Release { worker, drop_token, fault }),
        2 => (of_request, fault()).prop_map(
            |((worker, person, request), fault)| Step::AddStamp { worker, person, request, fault }
        ),
        1 => worker.clone().prop_map(|worker| Step::Crash { worker }),
        4 => (worker.clone(), freshness(), fault()).prop_map(
            |(worker, freshness, fault)| Step::RepeatClaim { worker, freshness, fault }
        ),
        2 => worker.clone().prop_map(|worker| Step::RepeatRecent { worker }),
        4 => (worker.clone(), fault()).prop_map(|(worker, fault)| Step::Index { worker, fault }),
        3 => (worker.clone(), fault())
            .prop_map(|(worker, fault)| Step::NoteIndexed { worker, fault }),
        2 => (worker.clone(), person.clone(), prop_oneof![Just(0), 0..40_usize], fault()).prop_map(
            |(worker, person, back, fault)| Step::EndUntil { worker, person, back, fault }
        ),
        3 => (
            worker.clone(),
            person.clone(),
            any::<Index>(),
            prop::option::of(person.clone()),
            prop::option::weighted(0.3, (0..3_usize, fault())),
        )
            .prop_map(|(worker, person, which, of, fault)| {
                let fault = fault.and_then(|(after, fault)| Some((after, fault?)));
                Step::EndSession { worker, person, which, of, fault }
            }),
        2 => worker.prop_map(|worker| Step::RunDeferred { worker }),
        2 => any::<Index>().prop_map(|which| Step::ArriveLate { which }),
        3 => person.clone().prop_map(|person| Step::ExpireLease { person }),
        1 => person.prop_map(|person| Step::LoseData { person }),
    ]
}
