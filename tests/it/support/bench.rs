//! A test's bench: names of its own, a platform, RabbitMQ, and the settings that tie them together.

use std::{collections::BTreeMap, ops::Range};

use serde_json::json;

use super::{
    Node, Platform, Proxy, Rabbit,
    platform::API_KEY,
    required_env,
    worker::{Settings, Worker},
};

pub struct Bench {
    pub name: String,
    pub platform: Platform,
    pub rabbit: Rabbit,
    pub settings: Settings,
    amqp: String,
    redis: String,
}

impl Bench {
    /// With a platform that does well, and somebody who hears events.
    pub async fn new() -> Self {
        Self::with(Platform::healthy().await).await
    }

    pub async fn with(platform: Platform) -> Self {
        let mut bench = Self::deaf(platform).await;
        bench.rabbit.hear_events().await;
        bench
    }

    /// With nobody to hear events.
    pub async fn deaf(platform: Platform) -> Self {
        let amqp = required_env("HANDOFF_AMQP_URL");
        Self::on(platform, &amqp, &required_env("HANDOFF_REDIS_URL")).await
    }

    /// With a RabbitMQ of its own, which takes everything with it at the end.
    pub async fn on_own_rabbitmq(platform: Platform, node: &Node) -> Self {
        let mut bench = Self::keeping_events(platform, node).await;
        bench.rabbit.hear_events_durably().await;
        bench
    }

    /// The same, with events kept there until [`Self::reconnect`].
    pub async fn keeping_events(platform: Platform, node: &Node) -> Self {
        let bench = Self::on(platform, &node.url, &required_env("HANDOFF_REDIS_URL")).await;
        bench.rabbit.keep_events_durably().await;
        bench
    }

    /// With a Redis of its own.
    pub async fn on_own_redis(platform: Platform, node: &Node) -> Self {
        let mut bench = Self::on(platform, &required_env("HANDOFF_AMQP_URL"), &node.url).await;
        bench.rabbit.hear_events().await;
        bench
    }

    async fn on(platform: Platform, amqp: &str, redis: &str) -> Self {
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        let rabbit = Rabbit::connect(amqp, &name).await;
        let settings = [
            ("IDV_URL", platform.url.as_str()),
            ("IDV_API_KEY", API_KEY),
            ("IDV_WORKFLOW_ID", "default-workflow"),
            ("AMQP_URL", amqp),
            ("REDIS_URL", redis),
            ("QUEUE", &rabbit.queue),
            ("REQUEST_EXCHANGE", &rabbit.request_exchange),
            ("EVENT_EXCHANGE", &rabbit.event_exchange),
            ("KEY_PREFIX", &name),
            ("HTTP_ADDR", "127.0.0.1:0"),
            ("LOG", "debug"),
            ("LOG_FORMAT", "json"),
        ];
        let settings: Settings = settings
            .into_iter()
            .map(|(name, value)| (format!("HANDOFF_{name}"), value.to_owned()))
            .collect();
        let (amqp, redis) = (amqp.to_owned(), redis.to_owned());
        Self { name, platform, rabbit, settings, amqp, redis }
    }

    /// Changes a setting, named without its `HANDOFF_`.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.settings.insert(format!("HANDOFF_{name}"), value.to_owned());
        self
    }

    /// Puts a proxy before the server that a setting names the URL of.
    pub async fn through_proxy(&mut self, name: &str) -> Proxy {
        let direct = self.settings[&format!("HANDOFF_{name}")].clone();
        let proxy = Proxy::to(&direct).await;
        self.set(name, &proxy.url(&direct));
        proxy
    }

    /// The settings as a worker in this process takes them.
    pub fn in_process(&self) -> handoff::config::Settings {
        use clap::{Args, FromArgMatches};
        let flags = self.settings.iter().map(|(name, value)| {
            let flag = name.trim_start_matches("HANDOFF_").to_lowercase().replace('_', "-");
            format!("--{flag}={value}")
        });
        let command = handoff::config::RunFlags::augment_args(clap::Command::new("run"));
        let flags = std::iter::once("run".to_owned()).chain(flags);
        let matches = command.try_get_matches_from(flags).unwrap();
        let given = handoff::config::RunFlags::from_arg_matches(&matches).unwrap();
        handoff::config::Settings::parse(&given).unwrap()
    }

    /// Publishes requests, `r-0` for `user-0` and so on.
    pub async fn requests(&self, numbers: Range<usize>) {
        for n in numbers {
            self.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
        }
    }

    /// Waits until each of so many requests has an event, none a failure, and repeats only under one
    /// id. Nothing is dead.
    pub async fn all_ready(&mut self, count: usize) {
        let mut ids = BTreeMap::new();
        while ids.len() < count {
            let event = self.rabbit.event().await;
            assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
            let (id, data) = (event.json()["id"].to_string(), event.data());
            let request = data["requestId"].as_str().unwrap().to_owned();
            assert_eq!(data["userId"], request.replace("r-", "user-"));
            let told = ids.entry(request).or_insert_with(|| id.clone());
            assert_eq!(*told, id);
        }
        assert_eq!(self.rabbit.depth(&format!("{}.dead", self.rabbit.queue)).await, 0);
    }

    /// A worker that consumes.
    pub async fn worker(&self) -> Worker {
        Worker::consuming(&self.settings).await
    }

    /// Connects to a RabbitMQ that has been away, and hears events again.
    pub async fn reconnect(&mut self) {
        self.rabbit = Rabbit::connect(&self.amqp, &self.name).await;
        self.rabbit.hear_events_durably().await;
    }

    /// Writes to Redis what no worker would.
    pub async fn cache_rubbish(&self, key: &str, value: &[u8]) {
        let mut redis = redis(&self.redis).await;
        redis_cmd("SET").arg(key).arg(value).query_async::<()>(&mut redis).await.unwrap();
    }

    /// Everything Redis holds for this test: keys, values, and milliseconds left to live.
    pub async fn cached(&self) -> Vec<(String, Vec<u8>, i64)> {
        let mut redis = redis(&self.redis).await;
        let pattern = format!("{}:*", self.name);
        let keys: Vec<String> =
            redis_cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
        let mut entries = Vec::new();
        for key in keys {
            let value = redis_cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
            let left = redis_cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
            entries.push((key, value, left));
        }
        entries
    }
}

pub use deadpool_redis::redis::cmd as redis_cmd;

pub async fn redis(url: &str) -> deadpool_redis::redis::aio::MultiplexedConnection {
    let client = deadpool_redis::redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Takes away what the test left on RabbitMQ and Redis, pass or fail.
impl Drop for Bench {
    fn drop(&mut self) {
        let (name, settings) = (self.name.clone(), self.settings.clone());
        let exchanges = [self.rabbit.request_exchange.clone(), self.rabbit.event_exchange.clone()];
        let queue = self.rabbit.queue.clone();
        // A server of the test's own goes as a whole.
        let shared = |url: &str, variable| url == required_env(variable);
        let shared_rabbit = shared(&self.amqp, "HANDOFF_AMQP_URL");
        let shared_redis = shared(&self.redis, "HANDOFF_REDIS_URL");
        let (amqp, redis_url) = (self.amqp.clone(), self.redis.clone());
        let sweep = async move {
            if shared_rabbit {
                let rabbit = Rabbit::connect(&amqp, &name).await;
                let delays =
                    settings.get("HANDOFF_RETRY_DELAYS").map_or("10s,1m,5m,15m", String::as_str);
                let retry = delays.split(',').map(|delay| format!("{queue}.retry.{delay}"));
                for queue in [queue.clone(), format!("{queue}.dead")].into_iter().chain(retry) {
                    rabbit.delete_queue(&queue).await;
                }
                for exchange in exchanges {
                    rabbit.delete_exchange(&exchange).await;
                }
            }
            if shared_redis {
                let mut redis = redis(&redis_url).await;
                let pattern = format!("{name}:*");
                let keys: Vec<String> =
                    redis_cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
                for key in keys {
                    redis_cmd("DEL").arg(key).query_async::<()>(&mut redis).await.unwrap();
                }
            }
        };
        // On a thread of its own: the test's runtime is busy being dropped.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let swept = std::thread::spawn(move || runtime.block_on(sweep)).join();
        assert!(swept.is_ok() || std::thread::panicking(), "the sweep failed");
    }
}
