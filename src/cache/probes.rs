//! The permits to probe a platform that is down, and its last good answer, which all replicas share.

use std::time::Duration;

use super::{error::CacheError, handle::Cache, scripts};
use crate::units::millis;

/// The time between two permits. A permit is used within 300 ms after it was requested, so that six calls take more
/// than 5 × 260 - 300 ms = 1 s.
const INTERVAL: Duration = Duration::from_millis(260);
/// How many permits may be granted ahead of their time, to second calls of probes.
const MAX_AHEAD: u32 = 4;
/// How long a good answer is kept: replicas look at least every 3 s.
const ANSWER_KEPT: Duration = Duration::from_secs(10);
/// The probes for which each good answer adds permits: the number of replicas that call doubles with each round.
const ADDED: u32 = 2;
/// The most permits that may be left: a platform that fails again gets no more calls than these.
const MAX_LEFT: u32 = 64;

/// What a replica wants a permit for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WantedPermit {
    /// It may be one of those that good answers add.
    pub(crate) is_half_open: bool,
    /// For the second call of a probe, which goes before those that begin one.
    pub(crate) is_second_call: bool,
}

/// The reply to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TakenPermit {
    pub(crate) is_granted: bool,
    /// Time until this permit may be used; or until the next one, if it was denied.
    pub(crate) wait: Duration,
    /// How long ago the platform last answered a replica well after a pause.
    pub(crate) answered_ago: Option<Duration>,
}

/// Both keys expire by themselves, and the script grants a permit if a key lives longer than it should.
#[derive(Clone)]
pub(crate) struct Probes {
    cache: Cache,
    permit: String,
    answer: String,
}

impl Probes {
    pub(crate) fn new(cache: &Cache) -> Self {
        let key = |kind| format!("{}:{{probes}}:{kind}", cache.0.prefix);
        Self { permit: key("permit"), answer: key("answer"), cache: cache.clone() }
    }

    /// Takes a permit for one call.
    pub(crate) async fn take(&self, wanted: WantedPermit) -> Result<TakenPermit, CacheError> {
        let from = if wanted.is_half_open { "half-open" } else { "open" };
        self.run(from, if wanted.is_second_call { MAX_AHEAD } else { 0 }).await
    }

    /// Returns when the platform last answered a replica well.
    pub(crate) async fn look(&self) -> Result<TakenPermit, CacheError> {
        self.run("", 0).await
    }

    /// Records that the platform has answered this replica well after a pause. `calls`: how many a probe takes.
    pub(crate) async fn answered(&self, calls: u32) -> Result<(), CacheError> {
        let mut script = scripts::PLATFORM_ANSWERED.call([&self.answer]);
        script.arg(millis(ANSWER_KEPT)).arg(ADDED * calls).arg(MAX_LEFT);
        self.cache.run::<()>(&self.answer, &script).await
    }

    async fn run(&self, from: &str, ahead: u32) -> Result<TakenPermit, CacheError> {
        let mut script = scripts::TAKE_PROBE.call([&self.permit, &self.answer]);
        script.arg(millis(INTERVAL)).arg(millis(ANSWER_KEPT));
        script.arg(from).arg(ahead).arg(MAX_AHEAD);
        let (is_granted, wait, left) =
            self.cache.run::<(bool, u64, u64)>(&self.permit, &script).await?;
        let answered_ago =
            (left > 0).then(|| ANSWER_KEPT.saturating_sub(Duration::from_millis(left)));
        Ok(TakenPermit { is_granted, wait: Duration::from_millis(wait), answered_ago })
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{self, AsyncCommands};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        cache::test_redis::{TestRedis, connected},
        config::Flow,
    };

    const FIRST: WantedPermit = WantedPermit { is_half_open: false, is_second_call: false };
    const HALF_OPEN: WantedPermit = WantedPermit { is_half_open: true, is_second_call: false };
    const SECOND: WantedPermit = WantedPermit { is_half_open: false, is_second_call: true };
    const GRANTED: TakenPermit =
        TakenPermit { is_granted: true, wait: Duration::ZERO, answered_ago: None };

    async fn probes() -> (TestRedis, Probes) {
        let redis = TestRedis::connect().await;
        let cache = connected(&redis.settings(Flow::Token)).await;
        (redis, Probes::new(&cache))
    }

    #[tokio::test]
    async fn permits_are_an_interval_apart_and_expire() {
        let (redis, probes) = probes().await;
        let began = Instant::now();
        assert_eq!(probes.take(FIRST).await, Ok(GRANTED));
        let denied = probes.take(HALF_OPEN).await.unwrap();
        let is_denied = !denied.is_granted && denied.wait <= INTERVAL;
        assert!(is_denied || began.elapsed() >= INTERVAL, "{denied:?}");
        let mut granted = 1;
        while granted < 4 {
            let taken = probes.take(FIRST).await.unwrap();
            granted += u32::from(taken.is_granted);
            sleep(taken.wait).await;
        }
        let took = began.elapsed();
        assert!(took >= 3 * INTERVAL - Duration::from_millis(10), "{took:?}");
        sleep(INTERVAL * 2).await;
        assert!(
            redis
                .connection
                .clone()
                .keys::<_, Vec<String>>(format!("{}:*", redis.prefix))
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn second_calls_go_before_first_ones_at_the_same_rate() {
        let (redis, probes) = probes().await;
        let began = Instant::now();
        assert_eq!(probes.take(FIRST).await, Ok(GRANTED));
        let mut granted = 0;
        let denied = loop {
            let asked = began.elapsed();
            let taken = probes.take(SECOND).await.unwrap();
            if !taken.is_granted {
                break taken;
            }
            granted += 1;
            // Redis may count the time from a moment that is later than the one here, and in whole milliseconds.
            let usable = began.elapsed() + taken.wait;
            assert!(usable >= granted * INTERVAL - Duration::from_millis(10), "{usable:?}");
            assert!(asked + taken.wait <= began.elapsed() + MAX_AHEAD * INTERVAL, "{taken:?}");
        };
        assert!(granted >= MAX_AHEAD, "{granted} granted ahead");
        assert!(denied.wait > MAX_AHEAD * INTERVAL, "{denied:?}");
        // Others wait until those that were granted ahead are used.
        let denied = probes.take(FIRST).await.unwrap();
        assert!(!denied.is_granted, "{denied:?}");
        sleep(denied.wait).await;
        while !probes.take(FIRST).await.unwrap().is_granted {
            sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed();
        assert!(took >= (granted + 1) * INTERVAL - Duration::from_millis(10), "{took:?}");
        redis.delete_all().await;
    }

    #[tokio::test]
    async fn keys_without_an_end_or_of_another_type_keep_nothing_shut() {
        let (redis, probes) = probes().await;
        let mut connection = redis.connection.clone();
        for (command, value) in [("SET", "1"), ("LPUSH", "x")] {
            redis::cmd(command)
                .arg(&probes.permit)
                .arg(value)
                .exec_async(&mut connection)
                .await
                .unwrap();
            assert_eq!(probes.take(FIRST).await, Ok(GRANTED), "{command}");
            redis.delete(&[&probes.permit]).await;
        }
        // Much longer than permits are granted ahead, as after the clock of Redis was set back.
        let _: () = connection.set_ex(&probes.permit, "1", 3_600).await.unwrap();
        assert_eq!(probes.take(FIRST).await, Ok(GRANTED));
        let _: () = connection.set(&probes.answer, "1").await.unwrap();
        let nothing = TakenPermit { is_granted: false, ..GRANTED };
        assert_eq!(probes.look().await, Ok(nothing));
        redis.delete_all().await;
    }

    #[tokio::test]
    async fn each_good_answer_adds_permits_for_half_open_replicas_alone() {
        let (redis, probes) = probes().await;
        let added = async || {
            let mut added = 0;
            // Uses up the permit of the moment, so that the others are those that were added.
            let _ = probes.take(FIRST).await;
            while probes.take(HALF_OPEN).await.unwrap().is_granted {
                added += 1;
                let _ = probes.take(FIRST).await;
            }
            added
        };
        assert_eq!(added().await, 0);
        for calls in [1, 2] {
            probes.answered(calls).await.unwrap();
            let ago = probes.look().await.unwrap().answered_ago;
            assert!(ago.is_some_and(|ago| ago < Duration::from_secs(5)), "{ago:?}");
            let added = added().await;
            assert!((2 * calls..=2 * calls + 1).contains(&added), "{added} for {calls}");
        }
        for _ in 0..40 {
            probes.answered(2).await.unwrap();
        }
        let added = added().await;
        assert!((64..=72).contains(&added), "{added}");
        redis.delete_all().await;
    }
}
