//! The shares of a rate limit that a fleet has more requests for.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{MINUTE, REPLICAS, SECOND, SLOTS, replica::World};
use crate::{config::RateLimit, platform::Gate, session::Call, telemetry::metrics::Metrics};

const LIMIT: RateLimit = RateLimit { count: 1_000, per: MINUTE };

/// Replicas that always have more to do than the limit allows: gate and rate limit are real, all else is left out.
/// Each runs until it is dropped.
fn start(world: &Arc<World>, replicas: usize) -> Vec<JoinSet<()>> {
    (0..replicas).map(|_| start_one(world)).collect()
}

fn start_one(world: &Arc<World>) -> JoinSet<()> {
    let number = world.next_number();
    let gate = Arc::new(Gate::new(world.rate_limiter(), SLOTS, Metrics::new()));
    let mut slots = JoinSet::new();
    for slot in 0..SLOTS {
        let (world, gate) = (Arc::clone(world), Arc::clone(&gate));
        slots.spawn(async move {
            loop {
                let mut ticket = gate.ticket(&slot.to_string(), "w");
                for call in [Call::Token, Call::Session] {
                    ticket.reserve(call);
                    let permit = ticket.acquire(call).await;
                    let _ = permit.report(world.platform.call(number, call).await);
                }
            }
        });
    }
    slots
}

/// Starts a replica of release 0.1, which asks whenever the bucket gains a call.
fn start_one_of_0_1(world: &Arc<World>) -> JoinSet<()> {
    let number = world.next_number();
    let slots = Arc::new(Semaphore::new(SLOTS.into()));
    let world = Arc::clone(world);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut calls = JoinSet::new();
        loop {
            drop(slots.acquire().await);
            let wanted = u32::try_from(slots.available_permits()).unwrap();
            let (granted, wait) = world.redis.take_calls_as_0_1(wanted).await.unwrap();
            for _ in 0..granted {
                let slot = Arc::clone(&slots).acquire_owned().await;
                let world = Arc::clone(&world);
                calls.spawn(async move {
                    let _ = world.platform.call(number, Call::Token).await;
                    drop(slot);
                });
            }
            if granted < wanted {
                sleep(wait.clamp(Duration::from_millis(1), SECOND)).await;
            }
        }
    });
    tasks
}

fn scripts(world: &World) -> u64 {
    world.redis.rate_scripts.load(Ordering::Relaxed)
}

/// The fewest and the most calls of a replica, as parts of the mean; and the mean.
fn shares(calls: &[u32]) -> (f64, f64, f64) {
    let mean = f64::from(calls.iter().sum::<u32>()) / calls.len() as f64;
    let part = |calls: Option<&u32>| f64::from(*calls.unwrap()) / mean;
    (part(calls.iter().min()), part(calls.iter().max()), mean)
}

fn assert_fair(name: &str, calls: &[u32]) {
    let (least, most, mean) = shares(calls);
    println!(
        "{name}: by replica {:.0} to {:.0} % of the mean of {mean:.1}",
        100.0 * least,
        100.0 * most
    );
    assert!(least >= 0.8 && most <= 1.2);
}

/// Asserts that a limit was kept from one time to another, and used.
fn assert_used(world: &World, limit: RateLimit, from: Duration, to: Duration) {
    let platform = &world.platform;
    let most = platform.most_in(limit.per, Duration::ZERO, to);
    let calls = platform.most_in(to, from, to) as f64;
    let due = f64::from(limit.count) * (to - from).as_secs_f64() / limit.per.as_secs_f64();
    println!(
        "    {:.1} % of the limit used, {most} calls in the fullest window",
        100.0 * calls / due
    );
    assert!(most <= 2 * limit.count as usize);
    assert!(calls >= 0.95 * due && calls <= 1.02 * due + f64::from(limit.count) / 2.0);
}

#[tokio::test(start_paused = true)]
async fn rate_limit_is_shared_fairly() {
    let high = RateLimit { count: 1_000, per: SECOND };
    let low = RateLimit { count: 10, per: MINUTE };
    for (limit, replicas, time) in [
        (LIMIT, 50, 20 * MINUTE),
        (LIMIT, REPLICAS, 30 * MINUTE),
        (high, 100, 30 * SECOND),
        (low, 20, 60 * MINUTE),
    ] {
        let world = World::new(SLOTS, Some(limit));
        let _replicas = start(&world, replicas);
        sleep(time).await;
        let calls = world.platform.calls_by_replica(replicas, Duration::ZERO, time);
        assert_fair(
            &format!("rate limit {}/{} s, {replicas} replicas", limit.count, limit.per.as_secs()),
            &calls,
        );
        assert_used(&world, limit, Duration::ZERO, time);
        let total: u32 = calls.iter().sum();
        let each = scripts(&world) as f64 / f64::from(total);
        println!(
            "    {:.1} scripts a second, {each:.2} for each call",
            scripts(&world) as f64 / time.as_secs_f64()
        );
        // One for each call, and those of replicas that wait for longer than 5 s.
        let looks = replicas as f64 * time.as_secs_f64() / 5.0;
        assert!(scripts(&world) as f64 <= 1.1 * (f64::from(total) + looks));
    }
}

#[tokio::test(start_paused = true)]
async fn rate_limit_during_a_rolling_deploy() {
    let world = World::new(SLOTS, Some(LIMIT));
    let mut replicas = start(&world, REPLICAS);
    sleep(2 * MINUTE).await;
    for _ in 0..REPLICAS / 20 {
        replicas.drain(..10);
        replicas.extend(start(&world, 10));
        sleep(SECOND).await;
    }
    let deployed = world.platform.now();
    println!("rate limit, a deploy replaces 500 of 1,000 replicas, 10 a second");
    assert_used(&world, LIMIT, 2 * MINUTE, deployed);
    sleep(25 * MINUTE).await;
    let end = world.platform.now();
    let calls = world.platform.calls_by_replica(REPLICAS * 3 / 2, deployed + MINUTE, end);
    assert_fair("    afterwards", &calls[REPLICAS / 2..]);
    replicas.truncate(50);
    let few = world.platform.now();
    sleep(2 * MINUTE).await;
    println!("rate limit, 950 of 1,000 replicas end at once");
    assert_used(&world, LIMIT, few + 6 * SECOND, few + 2 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn rate_limit_shared_with_replicas_of_release_0_1() {
    for (new, old, time) in [(1, 9, 10 * MINUTE), (45, 5, 20 * MINUTE), (950, 50, 30 * MINUTE)] {
        let world = World::new(SLOTS, Some(LIMIT));
        let _replicas = start(&world, new);
        let _old: Vec<_> = (0..old).map(|_| start_one_of_0_1(&world)).collect();
        sleep(time).await;
        let calls = world.platform.calls_by_replica(new + old, Duration::ZERO, time);
        assert_fair(
            &format!("rate limit, {old} of {} replicas are of 0.1", new + old),
            &calls[..new],
        );
        let (_, _, of_new) = shares(&calls[..new]);
        let (_, _, of_old) = shares(&calls[new..]);
        println!("    of 0.1: {:.0} % of a new one's calls", 100.0 * of_old / of_new);
        assert_used(&world, LIMIT, Duration::ZERO, time);
        assert!(of_old > 0.0);
    }
}
