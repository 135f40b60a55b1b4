//! The bucket of calls that all replicas share, and the line of replicas that wait for it.

use std::time::Duration;

use deadpool_redis::redis::{self, AsyncCommands};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{
    cache::{
        RateBucket,
        rate_bucket::BucketShape,
        test_redis::{TestRedis, connected},
    },
    config::{Flow, RateLimit},
    rate_model::{ModelReply, RateModel},
};

const NO_TURN: (u64, u32) = (0, 0);

async fn bucket(count: u32, per: Duration) -> (TestRedis, RateBucket) {
    let redis = TestRedis::connect().await;
    let cache = connected(&redis.settings(Flow::Token)).await;
    (redis, RateBucket::new(cache, RateLimit { count, per }))
}

async fn take(bucket: &RateBucket, calls: u32) -> (u32, (u64, u32)) {
    let taken = bucket.take(calls, NO_TURN).await.unwrap();
    (taken.granted, taken.turn)
}

#[tokio::test]
async fn empty_bucket_gives_each_replica_a_turn_of_its_own() {
    let (redis, bucket) = bucket(10, Duration::from_secs(3_600)).await;
    let every = 360_000_000;
    assert_eq!(take(&bucket, 3).await, (3, NO_TURN), "out of the full bucket");
    let (granted, (first, calls)) = take(&bucket, 5).await;
    assert_eq!((granted, calls), (2, 1), "what is left, and a turn of one call");
    let (granted, (second, _)) = take(&bucket, 5).await;
    assert_eq!((granted, second - first), (0, every));
    // It asks before its turn, and keeps it.
    let taken = bucket.take(5, (first, 1)).await.unwrap();
    assert_eq!((taken.granted, taken.turn), (0, (first, 1)));
    assert!(taken.wait > Duration::from_secs(300), "{:?}", taken.wait);
    let (_, (third, _)) = take(&bucket, 5).await;
    assert_eq!(third - second, every);
    redis.delete_all().await;
}

#[tokio::test]
async fn turn_is_served_when_it_has_come_and_the_line_expires() {
    let (redis, bucket) = bucket(20, Duration::from_secs(4)).await;
    let kept = Duration::from_millis(500);
    assert_eq!(take(&bucket, 10).await, (10, NO_TURN));
    let began = Instant::now();
    let first = bucket.take(1, NO_TURN).await.unwrap();
    let second = bucket.take(1, NO_TURN).await.unwrap();
    assert_eq!(second.turn.0 - first.turn.0, 200_000);
    sleep(second.wait).await;
    for waited in [second, first] {
        let taken = bucket.take(1, waited.turn).await.unwrap();
        let is_in_time = began.elapsed() < waited.wait + kept;
        assert!(taken.granted == 1 || !is_in_time, "{taken:?}");
    }
    let began = Instant::now();
    let keys = async || -> Vec<String> {
        redis.connection.clone().keys(format!("{}:*", redis.prefix)).await.unwrap()
    };
    while !keys().await.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn calls_that_are_put_back_are_granted_again() {
    let (redis, bucket) = bucket(10, Duration::from_secs(3_600)).await;
    assert_eq!(take(&bucket, 5).await, (5, NO_TURN));
    bucket.put_back(2).await.unwrap();
    let (granted, turn) = take(&bucket, 5).await;
    assert_eq!((granted, turn.1), (2, 1));
    bucket.put_back(5).await.unwrap();
    // The one that waits had the next call, and does not come; 500 ms later it is anyone's.
    let began = Instant::now();
    let mut granted = 0;
    while granted < 5 {
        assert!(began.elapsed() < Duration::from_secs(60));
        granted += take(&bucket, 1).await.0;
    }
    redis.delete_all().await;
}

/// What release 0.1 asks.
const TAKE_CALLS_OF_0_1: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local every, most, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1]) or '') or now
full = math.min(math.max(full, now), now + most * every)
local free = math.floor((now + most * every - full) / every)
local granted = math.min(wanted, free)
full = math.max(full + granted * every, now)
if full > now then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
else
  redis.call('DEL', KEYS[1])
end
return {granted, math.max(full + every - most * every - now, 0)}";

#[tokio::test]
async fn release_0_1_shares_the_bucket_and_is_left_a_call_of_each_round() {
    let (redis, bucket) = bucket(10, Duration::from_secs(3_600)).await;
    let every = 360_000_000;
    let mut connection = redis.connection.clone();
    let mut take_as_0_1 = async |wanted: i64| -> i64 {
        let script = redis::Script::new(TAKE_CALLS_OF_0_1);
        let mut script = script.key(format!("{}:{{calls}}:rate", redis.prefix));
        script.arg(every).arg(5).arg(wanted);
        let (granted, wait): (i64, i64) = script.invoke_async(&mut connection).await.unwrap();
        assert!(wait <= every);
        granted
    };
    assert_eq!(take(&bucket, 3).await, (3, NO_TURN));
    assert_eq!(take_as_0_1(5).await, 2);
    // Of the next two calls, one is for 0.1.
    let (_, (first, _)) = take(&bucket, 1).await;
    let taken = bucket.take(1, (first, 1)).await.unwrap();
    assert!(taken.wait > Duration::from_secs(600), "{:?}", taken.wait);
    assert_eq!(take_as_0_1(1).await, 0);
    // Only in each round: this line is two calls long.
    let turns = [take(&bucket, 1).await.1.0, take(&bucket, 1).await.1.0];
    assert!(turns[1] - first <= 4 * every as u64, "{turns:?}");
    assert_eq!(take_as_0_1(-5).await, -5);
    assert_eq!(take_as_0_1(5).await, 5);
    redis.delete_all().await;
}

#[tokio::test]
async fn times_of_another_clock_or_limit_are_cut() {
    let (redis, bucket) = bucket(10, Duration::from_secs(60)).await;
    let mut connection = redis.connection.clone();
    let (now, _): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await.unwrap();
    let far = (now + 1_000_000) * 1_000_000;
    for kind in ["rate", "line"] {
        let key = format!("{}:{{calls}}:{kind}", redis.prefix);
        connection.set::<_, _, ()>(key, far).await.unwrap();
    }
    let taken = bucket.take(1, (far, 1)).await.unwrap();
    assert_eq!(taken.granted, 0);
    let minutes = taken.turn.0.saturating_sub(now * 1_000_000) / 60_000_000;
    assert!((9..=11).contains(&minutes), "{minutes}");
    redis.delete_all().await;
}

/// What the script calls, and what it calls here: the time is given, and keys expire when the model says so.
const CLOCK: [(&str, &str); 2] =
    [("redis.call('TIME')", "{ARGV[8], ARGV[9]}"), ("'PX', ", "'PX', 3600000 + ")];

#[tokio::test]
async fn script_does_what_the_model_of_the_simulations_does() {
    let redis = TestRedis::connect().await;
    let mut source = include_str!("../scripts/take_calls.lua").to_owned();
    for (real, here) in CLOCK {
        assert!(source.contains(real));
        source = source.replace(real, here);
    }
    let script = redis::Script::new(&source);
    let mut connection = redis.connection.clone();
    let mut rng = StdRng::seed_from_u64(7);
    for (count, per) in [(1, 10_000), (3, 1_000), (10, 60_000), (1_000, 60_000), (1_000, 1_000)] {
        let shape = BucketShape::of(RateLimit { count, per: Duration::from_millis(per) });
        let (every, kept) = (shape.refill_micros as i64, shape.kept_micros as i64);
        let mut model = RateModel::new(every, shape.capacity.into(), shape.turn_calls.into(), kept);
        let mut now = 2_000_000_000_000_000_i64;
        let mut turns = vec![(0, 0)];
        for step in 0..400 {
            now += match rng.random_range(0..10) {
                0 => rng.random_range(0..every * 20),
                1 => -rng.random_range(0..every * 3),
                2..=5 => rng.random_range(0..every * 2),
                _ => rng.random_range(0..every / 4 + 1),
            };
            let wanted = match rng.random_range(0..10) {
                0 => -rng.random_range(1..4),
                1 => rng.random_range(1..600),
                _ => rng.random_range(1..5),
            };
            let turn = turns.swap_remove(rng.random_range(0..turns.len()));
            // A replica mostly asks when its turn has come.
            if wanted > 0 && turn.0 > now && rng.random_bool(0.7) {
                now = turn.0 + rng.random_range(0..every.min(kept));
            }
            let turn = if wanted < 0 { (0, 0) } else { turn };
            let name = |kind| format!("{}:{{{count}-{per}}}:{kind}", redis.prefix);
            let (has_bucket, has_line) = model.expire(now);
            for (kind, is_stored) in [("rate", has_bucket), ("line", has_line)] {
                if !is_stored {
                    redis.delete(&[&name(kind)]).await;
                }
            }
            let (granted, wait_micros, at, calls): (i64, i64, i64, i64) = script
                .key(name("rate"))
                .key(name("line"))
                .arg(every)
                .arg(shape.capacity)
                .arg(wanted)
                .arg(shape.turn_calls)
                .arg(kept)
                .arg(turn.0)
                .arg(turn.1)
                .arg(now / 1_000_000)
                .arg(now % 1_000_000)
                .invoke_async(&mut connection)
                .await
                .unwrap();
            let reply = ModelReply { granted, wait_micros, turn: (at, calls) };
            assert_eq!(reply, model.take(now, wanted, turn), "step {step} of {count}/{per}");
            turns.push(reply.turn);
            if turns.len() < 12 {
                turns.push((0, 0));
            }
        }
    }
    redis.delete_all().await;
}
