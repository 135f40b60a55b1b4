//! The steps at Redis in every order, by several workers that are delayed, cut off and killed at each
//! of them: what Redis holds and answers is compared with a model after every step.
//!
//! Scripts run whole, one after the other. So whatever several workers do at once is some order of
//! their steps, and a test that does one step at a time misses nothing.

mod model;
mod world;

use proptest::{prelude::*, sample::Index};

use self::{
    model::Wanted,
    world::{PEOPLE, REQUESTS, WORKERS, World},
};
use super::pool::Lost;

/// What happens next. A step that its worker is in no position to take is passed over.
#[derive(Clone, Debug)]
enum Step {
    /// For a person's request, of which there are a few, so that they come again.
    Claim {
        worker: usize,
        person: usize,
        request: usize,
        wanted: Wanted,
        lost: Option<Lost>,
    },
    /// The token is kept for a successor.
    Save {
        worker: usize,
        lost: Option<Lost>,
    },
    Extend {
        worker: usize,
        lost: Option<Lost>,
    },
    Store {
        worker: usize,
        short: bool,
        replace: bool,
        lost: Option<Lost>,
    },
    Release {
        worker: usize,
        drop_token: bool,
        lost: Option<Lost>,
    },
    /// A request is served with the link that is there.
    Stamp {
        worker: usize,
        person: usize,
        request: usize,
        lost: Option<Lost>,
    },
    /// Another worker takes the dead one's place.
    Crash {
        worker: usize,
    },
    /// Redis is told what it was to be told as soon as it is back.
    Back {
        worker: usize,
    },
    /// A call that seemed lost arrives after all.
    Late {
        which: Index,
    },
    /// The lease runs out, as it does for a worker that is dead or stalled.
    Expire {
        person: usize,
    },
    /// Redis forgets the link and the token.
    Forget {
        person: usize,
    },
}

fn lost() -> impl Strategy<Value = Option<Lost>> {
    prop_oneof![6 => Just(None), 1 => Just(Some(Lost::Call)), 1 => Just(Some(Lost::Answer))]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![
        Just(Wanted::Any),
        Just(Wanted::OwnOrNewer),
        (0..REQUESTS).prop_map(Wanted::OtherThan),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, person, request) = (0..WORKERS, 0..PEOPLE, 0..REQUESTS);
    let of_request = (worker.clone(), person.clone(), request);
    prop_oneof![
        8 => (of_request.clone(), wanted(), lost()).prop_map(
            |((worker, person, request), wanted, lost)| Step::Claim { worker, person, request, wanted, lost }
        ),
        4 => (worker.clone(), lost()).prop_map(|(worker, lost)| Step::Save { worker, lost }),
        4 => (worker.clone(), lost()).prop_map(|(worker, lost)| Step::Extend { worker, lost }),
        6 => (worker.clone(), prop::bool::weighted(0.1), any::<bool>(), lost()).prop_map(
            |(worker, short, replace, lost)| Step::Store { worker, short, replace, lost }
        ),
        2 => (worker.clone(), any::<bool>(), lost())
            .prop_map(|(worker, drop_token, lost)| Step::Release { worker, drop_token, lost }),
        2 => (of_request, lost()).prop_map(
            |((worker, person, request), lost)| Step::Stamp { worker, person, request, lost }
        ),
        1 => worker.clone().prop_map(|worker| Step::Crash { worker }),
        2 => worker.prop_map(|worker| Step::Back { worker }),
        2 => any::<Index>().prop_map(|which| Step::Late { which }),
        3 => person.clone().prop_map(|person| Step::Expire { person }),
        1 => person.prop_map(|person| Step::Forget { person }),
    ]
}

#[test]
fn whatever_happens_to_workers_nobody_gets_a_wrong_link_and_no_lease_is_had_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 160, failure_persistence: None, ..Default::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..80))| {
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
            }
            world.leave_nothing().await;
        });
    });
}

#[test]
fn a_link_names_the_latest_sixteen_requests_it_was_made_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let (worker, person, lost) = (0, 0, None);
        for made in 0..18 {
            let (request, wanted) = (made % 3, Wanted::OtherThan((made + 2) % 3));
            world.take(Step::Claim { worker, person, request, wanted, lost }).await;
            world.take(Step::Store { worker, short: false, replace: false, lost }).await;
        }
        world.take(Step::Stamp { worker, person, request: 3, lost }).await;
        world.leave_nothing().await;
    });
}
