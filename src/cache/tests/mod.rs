//! Runs the Redis operations of several workers in every order, and compares Redis with a model after
//! each step. Workers are delayed, disconnected and killed at every step.
//!
//! Redis runs scripts one at a time. So whatever workers do concurrently amounts to some order of their
//! scripts, and a test that runs one step at a time covers all of it.

mod index;
mod model;
mod one_call;
mod permissions;
mod rate;
mod step;
mod world;

use proptest::{prelude::*, sample::Index, strategy::ValueTree};

use self::{
    model::Freshness,
    step::{Step, step},
    world::World,
};
use super::node::InjectedFault;

async fn take(steps: impl IntoIterator<Item = Step>) {
    let mut world = World::new().await;
    for step in steps {
        world.apply(step).await;
    }
    world.clean_up().await;
}

fn claim(worker: usize, request: usize, freshness: Freshness) -> Step {
    Step::Claim { worker, person: 0, request, freshness, fault: None }
}

fn store(worker: usize, fault: Option<InjectedFault>) -> Step {
    Step::Store { worker, short_lived: false, other: false, fault }
}

fn end_until(back: usize) -> Step {
    Step::EndUntil { worker: 2, person: 0, back, fault: None }
}

#[test]
fn in_every_order_links_match_the_model_and_a_lease_has_one_holder() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 160, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..80))| {
        runtime.block_on(take(steps));
    });
}

#[tokio::test]
async fn link_keeps_the_stamps_of_the_last_sixteen_requests() {
    let made = (0..18_usize).flat_map(|made| {
        [claim(0, made % 3, Freshness::OtherThan((made + 2) % 3)), store(0, None)]
    });
    let add = Step::AddStamp { worker: 0, person: 0, request: 3, fault: None };
    take(made.chain([add])).await;
}

#[tokio::test]
async fn session_that_is_stored_late_is_no_newer_link() {
    take([
        claim(0, 0, Freshness::Any),
        Step::MakeSession { worker: 0 },
        // The first worker stalls, and a second one takes over.
        Step::ExpireLease { person: 0 },
        claim(1, 1, Freshness::Any),
        store(1, None),
        store(0, None),
        // The second request is redelivered: the first worker's session is older than its link.
        claim(2, 1, Freshness::SinceRequest),
    ])
    .await;
}

#[tokio::test]
async fn link_that_is_stored_after_its_verification_ended_is_dropped() {
    for redis_answers in [true, false] {
        take([
            claim(0, 0, Freshness::Any),
            Step::MakeSession { worker: 0 },
            // The worker stalls, or Redis does not answer it.
            if redis_answers {
                Step::ExpireLease { person: 0 }
            } else {
                store(0, Some(InjectedFault::ScriptLost))
            },
            end_until(0),
            if redis_answers { store(0, None) } else { Step::RunDeferred { worker: 0 } },
            claim(1, 1, Freshness::Any),
        ])
        .await;
    }
}

#[tokio::test]
async fn ending_does_not_affect_a_session_that_is_asked_for_later_in_the_same_second() {
    take([
        end_until(0),
        claim(0, 0, Freshness::Any),
        store(0, Some(InjectedFault::ScriptLost)),
        Step::ExpireLease { person: 0 },
        Step::RunDeferred { worker: 0 },
        claim(1, 1, Freshness::Any),
    ])
    .await;
}

#[tokio::test]
async fn session_that_ended_before_its_index_entry_was_written_is_not_handed_out() {
    let first = any::<Index>().new_tree(&mut Default::default()).unwrap().current();
    let end = Step::EndSession { worker: 2, person: 0, which: first, of: None, fault: None };
    take([
        claim(0, 0, Freshness::Any),
        store(0, None),
        end,
        // The first worker is killed before it writes the entry.
        Step::Crash { worker: 0 },
        claim(1, 1, Freshness::Any),
        claim(1, 2, Freshness::Any),
    ])
    .await;
}

#[tokio::test]
async fn session_that_ended_before_its_link_was_stored_is_not_handed_out() {
    let first = any::<Index>().new_tree(&mut Default::default()).unwrap().current();
    for was_marked in [false, true] {
        let end = Step::EndSession { worker: 2, person: 0, which: first, of: None, fault: None };
        let steps = [
            claim(0, 0, Freshness::Any),
            Step::MakeSession { worker: 0 },
            end,
            store(0, None),
            claim(1, 1, Freshness::Any),
            claim(1, 2, Freshness::Any),
        ];
        // A mark makes the store an unusual one.
        take(was_marked.then(|| end_until(0)).into_iter().chain(steps)).await;
    }
}

#[tokio::test]
async fn session_of_a_dead_worker_that_ended_is_not_stored_for_its_successor() {
    let first = any::<Index>().new_tree(&mut Default::default()).unwrap().current();
    for is_early in [false, true] {
        let end = Step::EndSession { worker: 2, person: 0, which: first, of: None, fault: None };
        take([
            claim(0, 0, Freshness::Any),
            Step::SaveToken { worker: 0, fault: None },
            Step::MakeSession { worker: 0 },
            Step::Crash { worker: 0 },
            Step::ExpireLease { person: 0 },
            if is_early { claim(1, 0, Freshness::Any) } else { end.clone() },
            // Either the ending or the entry is first.
            if is_early { Step::IndexEarly { worker: 1 } } else { claim(1, 0, Freshness::Any) },
            if is_early { end } else { store(1, None) },
            store(1, None),
            claim(2, 1, Freshness::Any),
        ])
        .await;
    }
}

#[tokio::test]
async fn claim_finds_the_link_that_a_fail_over_lost_before_all_late_scripts_have_run() {
    take([
        claim(0, 0, Freshness::Any),
        store(0, None),
        Step::LoseData { person: 0 },
        Step::RepeatRecent { worker: 0 },
        claim(0, 1, Freshness::Any),
    ])
    .await;
}
