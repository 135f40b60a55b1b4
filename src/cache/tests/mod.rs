//! Runs the Redis operations of several workers in every order, and compares Redis with a model after
//! each step. Workers are delayed, disconnected and killed at every step.
//!
//! Redis runs scripts one at a time. So whatever workers do concurrently amounts to some order of their
//! scripts, and a test that runs one step at a time covers all of it.

mod model;
mod one_call;
mod step;
mod world;

use proptest::prelude::*;

use self::{
    model::Freshness,
    step::{Step, step},
    world::World,
};

#[test]
fn in_every_order_links_match_the_model_and_a_lease_has_one_holder() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 160, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..80))| {
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.apply(step).await;
            }
            world.clean_up().await;
        });
    });
}

#[test]
fn link_keeps_the_stamps_of_the_last_sixteen_requests() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let worker = 0;
        let person = 0;
        let fault = None;
        for made in 0..18 {
            let request = made % 3;
            let freshness = Freshness::OtherThan((made + 2) % 3);
            world.apply(Step::Claim { worker, person, request, freshness, fault }).await;
            let store = Step::Store { worker, short_lived: false, replace: false, fault };
            world.apply(store).await;
        }
        world.apply(Step::AddStamp { worker, person, request: 3, fault }).await;
        world.clean_up().await;
    });
}

#[test]
fn session_that_is_stored_late_is_no_newer_link() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let (person, fault) = (0, None);
        let claim =
            |worker, request, freshness| Step::Claim { worker, person, request, freshness, fault };
        let store = |worker| Step::Store { worker, short_lived: false, replace: false, fault };
        for step in [
            claim(0, 0, Freshness::Any),
            Step::MakeSession { worker: 0 },
            // The first worker stalls, and a second one takes over.
            Step::ExpireLease { person },
            claim(1, 1, Freshness::Any),
            store(1),
            store(0),
            // The second request is redelivered: the first worker's session is older than its link.
            claim(2, 1, Freshness::SinceRequest),
        ] {
            world.apply(step).await;
        }
        world.clean_up().await;
    });
}
