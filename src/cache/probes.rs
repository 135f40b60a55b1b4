//! The permits to probe a platform that is down, and its last good answer, which all replicas share.

use std::time::Duration;

use super::{error::CacheError, handle::Cache, scripts};
use crate::units::millis;

/// The time between two permits. A permit is used within 300 ms after it was requested, so that six probes take more
/// than 5 × 260 - 300 ms = 1 s.
const INTERVAL: Duration = Duration::from_millis(260);
/// How long a good answer is kept: replicas look at least every 3 s.
const ANSWER_KEPT: Duration = Duration::from_secs(10);
/// Permits that each good answer adds for half-open replicas: their number doubles with each round of answers.
const ADDED: u32 = 2;
/// The most that may be left: a platform that fails again gets no more calls than these.
const MAX_LEFT: u32 = 32;

/// Whether a permit was granted; else the time until the next one; and how long ago the platform last answered a
/// replica well after a pause.
type Taken = (bool, Duration, Option<Duration>);

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

    /// Takes the permit of this moment, or, if `is_half_open`, one of those that good answers add.
    pub(crate) async fn take(&self, is_half_open: bool) -> Result<Taken, CacheError> {
        self.run(if is_half_open { "half-open" } else { "open" }).await
    }

    /// Returns when the platform last answered a replica well.
    pub(crate) async fn look(&self) -> Result<Taken, CacheError> {
        self.run("").await
    }

    /// Records that the platform has answered this replica well after a pause.
    pub(crate) async fn answered(&self) -> Result<Taken, CacheError> {
        let mut script = scripts::PLATFORM_ANSWERED.key(&self.answer);
        script.arg(millis(ANSWER_KEPT)).arg(ADDED).arg(MAX_LEFT);
        self.cache.run::<()>(&self.answer, &script).await?;
        Ok((false, Duration::ZERO, Some(Duration::ZERO)))
    }

    async fn run(&self, wanted: &str) -> Result<Taken, CacheError> {
        let mut script = scripts::TAKE_PROBE.key(&self.permit);
        script.key(&self.answer).arg(millis(INTERVAL)).arg(millis(ANSWER_KEPT)).arg(wanted);
        let (granted, wait, left) =
            self.cache.run::<(bool, u64, u64)>(&self.permit, &script).await?;
        let answered_ago =
            (left > 0).then(|| ANSWER_KEPT.saturating_sub(Duration::from_millis(left)));
        Ok((granted, Duration::from_millis(wait), answered_ago))
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

    async fn probes() -> (TestRedis, Probes) {
        let redis = TestRedis::connect().await;
        let cache = connected(&redis.settings(Flow::Token)).await;
        (redis, Probes::new(&cache))
    }

    #[tokio::test]
    async fn permits_are_an_interval_apart_and_expire() {
        let (redis, probes) = probes().await;
        let began = Instant::now();
        assert_eq!(probes.take(false).await, Ok((true, Duration::ZERO, None)));
        let (granted, wait, _) = probes.take(true).await.unwrap();
        assert!((!granted && wait <= INTERVAL) || began.elapsed() >= INTERVAL, "{wait:?}");
        let mut granted = 1;
        while granted < 4 {
            let (is_granted, wait, _) = probes.take(false).await.unwrap();
            granted += u32::from(is_granted);
            sleep(wait).await;
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
            assert_eq!(probes.take(false).await, Ok((true, Duration::ZERO, None)), "{command}");
            redis.delete(&[&probes.permit]).await;
        }
        // Much longer than an interval, as after the clock of Redis was set back.
        let _: () = connection.set_ex(&probes.permit, "1", 3_600).await.unwrap();
        assert_eq!(probes.take(false).await, Ok((true, Duration::ZERO, None)));
        let _: () = connection.set(&probes.answer, "1").await.unwrap();
        assert_eq!(probes.look().await, Ok((false, Duration::ZERO, None)));
        redis.delete_all().await;
    }

    #[tokio::test]
    async fn each_good_answer_adds_permits_for_half_open_replicas_alone() {
        let (redis, probes) = probes().await;
        let added = async || {
            let mut added = 0;
            // Uses up the permit of the moment, so that the others are those that were added.
            let _ = probes.take(false).await;
            while probes.take(true).await.unwrap().0 {
                added += 1;
                let _ = probes.take(false).await;
            }
            added
        };
        assert_eq!(added().await, 0);
        probes.answered().await.unwrap();
        let (_, _, ago) = probes.look().await.unwrap();
        assert!(ago.is_some_and(|ago| ago < Duration::from_secs(5)), "{ago:?}");
        let took = added().await;
        assert!((2..=3).contains(&took), "{took}");
        for _ in 0..40 {
            probes.answered().await.unwrap();
        }
        let took = added().await;
        assert!((32..=40).contains(&took), "{took}");
        redis.delete_all().await;
    }
}
