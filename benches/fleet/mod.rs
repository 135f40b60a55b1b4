//! A thousand replicas in one process, by Tokio's paused clock: `make fleet`.
//!
//! Gate, rate limit, single-flight and patience are the real code. Redis, RabbitMQ and the platform are models, and
//! `replica` puts the parts together as the worker does.

#![allow(clippy::print_stdout)]

mod platform;
mod plot;
mod rate;
mod redis;
mod replica;

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use self::replica::World;

const REPLICAS: usize = 1_000;
const SLOTS: u16 = 4;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn write_plot(name: &str, svg: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
    std::fs::write(dir.join(name), svg).unwrap();
}

#[tokio::test(start_paused = true)]
async fn outage_of_ten_minutes_and_its_end() {
    let world = World::new(SLOTS, None);
    let _replicas: Vec<_> = (0..REPLICAS).map(|_| world.start_replica()).collect();
    let traffic = async {
        world.publish_at(100, 13 * MINUTE, 0).await;
        sleep(MINUTE).await;
    };
    let outage = async {
        sleep(MINUTE).await;
        world.platform.set_up(false);
        sleep(2 * MINUTE).await;
        let scripts = world.redis.probe_scripts.load(Ordering::Relaxed);
        sleep(8 * MINUTE).await;
        let scripts = world.redis.probe_scripts.load(Ordering::Relaxed) - scripts;
        world.platform.set_up(true);
        (scripts as f64 / 480.0, world.queue.depth())
    };
    let ((), (scripts, depth)) = tokio::join!(traffic, outage);
    let platform = &world.platform;
    let (down, open, back) = (MINUTE, 3 * MINUTE, 11 * MINUTE);
    let by_second = platform.calls_by_second();
    let opening: u32 = by_second[60..180].iter().sum();
    let most = platform.most_in(SECOND, open, back);
    let probes: u32 = by_second[180..660].iter().sum();
    println!(
        "outage: {opening} calls in its first 2 minutes, {most} in the worst second from then on"
    );
    println!(
        "outage: {:.1} probes and {scripts:.0} scripts a second; {depth} requests in the queue",
        f64::from(probes) / 480.0
    );
    println!("outage: calls in each of the first 60 seconds after it: {:?}", &by_second[660..720]);
    let marks = [(down.as_secs(), "platform down"), (back.as_secs(), "platform back")];
    let title = "Calls a second of 1,000 replicas, outage of ten minutes";
    write_plot("fleet-outage.svg", &plot::draw(title, &by_second[..780], &marks));
    let title = "The first minute after it";
    write_plot(
        "fleet-return.svg",
        &plot::draw(title, &by_second[650..720], &[(10, "platform back")]),
    );
    assert!(most <= 5);
    assert!(probes >= 3 * 480);
    // Calls grow with what is answered.
    let calls = platform.calls.lock().clone();
    let answers = platform.answers.lock().clone();
    let mut answered = answers.partition_point(|at| *at < back);
    let before = answered;
    let first = calls.partition_point(|call| call.at < back);
    let mut worst: f64 = 0.0;
    for (begun, call) in calls[first..].iter().enumerate() {
        while answers.get(answered).is_some_and(|at| *at <= call.at) {
            answered += 1;
        }
        worst = worst.max((begun as f64 + 1.0 - 5.0) / ((answered - before) as f64).max(1.0));
    }
    println!("outage: at most {worst:.1} calls for each good answer since the platform is back");
    assert!(worst <= 5.0);
    let served = world.served.lock().len();
    println!("outage: {served} served, {} attempts failed", world.retried.load(Ordering::Relaxed));
    assert_eq!(served, 100 * 13 * 60);
    assert_eq!(platform.sessions(), served as u64, "one session for each user");
}

#[tokio::test(start_paused = true)]
async fn outage_of_sessions() {
    // Few replicas, whose requests probe again and again; and so many that most requests never do.
    for (replicas, per_second) in [(3, 5), (20, 20), (REPLICAS, 100)] {
        let world = World::new(SLOTS, None);
        let _replicas: Vec<_> = (0..replicas).map(|_| world.start_replica()).collect();
        let platform = &world.platform;
        let outage = async {
            sleep(10 * SECOND).await;
            platform.set_makes_sessions(false);
            sleep(4 * MINUTE).await;
            platform.set_makes_sessions(true);
            platform.now()
        };
        let traffic = world.publish_at(per_second, 4 * MINUTE, 0);
        let (back, users) = tokio::join!(outage, traffic);
        let sessions = platform.sessions();
        while platform.sessions() == sessions {
            sleep(SECOND / 100).await;
        }
        let first = platform.now() - back;
        sleep(MINUTE).await;
        let (from, to) = (2 * MINUTE, back);
        let most = platform.most_in(SECOND, from, to);
        let calls = platform.calls.lock().clone();
        let calls = calls.iter().filter(|call| (from..to).contains(&call.at)).count();
        let served = world.served.lock().len();
        println!(
            "outage of sessions, {replicas} replicas: {:.1} calls a second, {most} in the worst; first session {first:?} \
             after it, {served} served, {} attempts failed",
            calls as f64 / (to - from).as_secs_f64(),
            world.retried.load(Ordering::Relaxed)
        );
        assert!(most <= 5);
        assert!(first <= 3 * SECOND);
        assert_eq!(served as u64, users);
        assert_eq!(platform.sessions(), users, "one session for each user");
    }
}

#[tokio::test(start_paused = true)]
async fn redis_fail_over() {
    for (seconds, is_bridged) in [(2, true), (20, false)] {
        let world = World::new(SLOTS, None);
        let _replicas: Vec<_> = (0..REPLICAS).map(|_| world.start_replica()).collect();
        let traffic = async {
            // Each user asks three times, a second apart.
            for second in 0..60 {
                for user in 0..300 {
                    world.publish((second / 3) * 300 + user);
                    sleep(SECOND / 300).await;
                }
            }
        };
        let fail_over = async {
            sleep(20 * SECOND).await;
            world.redis.set_up(false);
            sleep(seconds * SECOND).await;
            world.redis.set_up(true);
        };
        tokio::join!(traffic, fail_over);
        sleep(MINUTE).await;
        let served = world.served.lock().clone();
        let longest = served.iter().max().unwrap();
        let users = 20 * 300;
        let duplicates = world.platform.sessions() - users;
        println!(
            "fail-over of {seconds} s: {} served, the longest after {longest:?}; {duplicates} duplicate sessions",
            served.len()
        );
        assert_eq!(served.len(), 60 * 300);
        assert_eq!(world.retried.load(Ordering::Relaxed), 0);
        if is_bridged {
            assert_eq!(duplicates, 0);
        } else {
            // Those users that ask while it is unavailable for longer than requests wait, three times each.
            assert!(duplicates <= 2 * 300 * (u64::from(seconds) - 3 + 3) / 3);
        }
        assert!(*longest <= 5 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn stampede_for_one_user() {
    let world = World::new(SLOTS, None);
    let _replicas: Vec<_> = (0..REPLICAS).map(|_| world.start_replica()).collect();
    for _ in 0..10_000 {
        world.publish(7);
    }
    sleep(10 * SECOND).await;
    let served = world.served.lock().clone();
    let scripts = world.redis.link_scripts.load(Ordering::Relaxed);
    println!(
        "stampede: {} served, the longest after {:?}; {scripts} scripts",
        served.len(),
        served.iter().max()
    );
    assert_eq!(served.len(), 10_000);
    assert_eq!(world.platform.sessions(), 1);
    assert_eq!(world.platform.calls.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn rolling_deploy() {
    let world = World::new(SLOTS, None);
    let mut replicas: Vec<_> = (0..REPLICAS).map(|_| world.start_replica()).collect();
    let traffic = world.publish_at(200, 5 * MINUTE, 0);
    let deploy = async {
        for _ in 0..REPLICAS / 10 {
            let old: Vec<_> = replicas.drain(..10).collect();
            replicas.extend((0..10).map(|_| world.start_replica()));
            for replica in old {
                replica.stop().await;
            }
            sleep(SECOND).await;
        }
    };
    tokio::join!(traffic, deploy);
    sleep(MINUTE).await;
    let served = world.served.lock().clone();
    println!(
        "rolling deploy: {} served, the longest after {:?}",
        served.len(),
        served.iter().max()
    );
    assert_eq!(served.len(), 200 * 5 * 60);
    assert_eq!(world.platform.sessions(), served.len() as u64);
    assert!(served.iter().all(|waited| *waited < 2 * SECOND));
}
