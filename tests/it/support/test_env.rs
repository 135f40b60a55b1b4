//! One test's environment: unique names on RabbitMQ and Redis, a simulated platform, and the
//! settings that connect them.

use std::{collections::BTreeMap, ops::Range};

use serde_json::json;

use super::{
    node::Node,
    platform::{API_KEY, Answer, Call, Platform, success},
    proxy::Proxy,
    rabbitmq::RabbitMq,
    redis::{self, RedisEntry},
    test_run::required_env,
    tls::Authority,
    worker::{Settings, Worker},
};

/// What the environment does with the events of its workers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Events {
    /// Consumes them, so that a test receives each in turn.
    Consumed,
    /// Routes them to a durable queue that nothing consumes until [`TestEnv::reconnect`].
    Queued,
    /// Binds no queue: every event is unroutable.
    Unroutable,
}

/// Configures a [`TestEnv`]; what is not set is shared with all tests and healthy.
pub struct Builder {
    platform: Box<dyn Fn(&Call) -> Answer + Send + Sync>,
    rabbitmq: Option<String>,
    redis: Option<String>,
    events: Events,
}

impl Builder {
    /// Has the platform answer each call as this script says, instead of successfully.
    pub fn platform(mut self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        self.platform = Box::new(script);
        self
    }

    /// Uses this RabbitMQ node, with an event queue that survives its restarts.
    pub fn rabbitmq(mut self, node: &Node) -> Self {
        self.rabbitmq = Some(node.url.clone());
        self
    }

    /// Uses this Redis node.
    pub fn redis(mut self, node: &Node) -> Self {
        self.redis = Some(node.url.clone());
        self
    }

    /// Queues events until [`TestEnv::reconnect`], so that a crash of RabbitMQ meets none on its
    /// way to the test.
    pub fn queue_events(mut self) -> Self {
        self.events = Events::Queued;
        self
    }

    /// Binds no event queue.
    pub fn without_event_queue(mut self) -> Self {
        self.events = Events::Unroutable;
        self
    }

    pub async fn start(self) -> TestEnv {
        let platform = Platform::scripted(self.platform).await;
        let is_durable = self.rabbitmq.is_some();
        let amqp_url = self.rabbitmq.unwrap_or_else(|| required_env("HANDOFF_AMQP_URL"));
        let redis_url = self.redis.unwrap_or_else(|| required_env("HANDOFF_REDIS_URL"));
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        let mut rabbitmq = RabbitMq::connect(&amqp_url, &name).await;
        match self.events {
            Events::Consumed if is_durable => rabbitmq.consume_events_durably().await,
            Events::Consumed => rabbitmq.consume_events().await,
            Events::Queued => drop(rabbitmq.bind_durable_event_queue().await),
            Events::Unroutable => {}
        }
        let settings = [
            ("IDV_URL", platform.url.as_str()),
            ("IDV_API_KEY", API_KEY),
            ("IDV_WORKFLOW_ID", "default-workflow"),
            // A call that a test holds must outlive the test's other steps on a busy machine: with the
            // default of 10 s it is repeated, and counted twice.
            ("IDV_TIMEOUT", "1m"),
            ("AMQP_URL", &amqp_url),
            ("REDIS_URL", &redis_url),
            ("QUEUE", &rabbitmq.queue),
            ("REQUEST_EXCHANGE", &rabbitmq.request_exchange),
            ("EVENT_EXCHANGE", &rabbitmq.event_exchange),
            ("KEY_PREFIX", &name),
            ("HTTP_ADDR", "127.0.0.1:0"),
            ("LOG", "debug"),
            ("LOG_FORMAT", "json"),
        ];
        let settings = settings
            .into_iter()
            .map(|(name, value)| (format!("HANDOFF_{name}"), value.to_owned()))
            .collect();
        TestEnv { name, platform, rabbitmq, settings, amqp_url, redis_url }
    }
}

pub struct TestEnv {
    pub name: String,
    pub platform: Platform,
    pub rabbitmq: RabbitMq,
    pub settings: Settings,
    amqp_url: String,
    redis_url: String,
}

impl TestEnv {
    /// Starts one with a healthy platform, shared servers, and consumed events.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> Builder {
        Builder {
            platform: Box::new(success),
            rabbitmq: None,
            redis: None,
            events: Events::Consumed,
        }
    }

    /// Changes a setting, named without its `HANDOFF_`.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.settings.insert(format!("HANDOFF_{name}"), value.to_owned());
        self
    }

    /// The value of a setting, named without its `HANDOFF_`.
    pub fn setting(&self, name: &str) -> &str {
        &self.settings[&format!("HANDOFF_{name}")]
    }

    /// The settings of these names alone, for a command that reads no others.
    pub fn only(&self, names: &[&str]) -> Settings {
        let mut settings = self.settings.clone();
        settings.retain(|name, _| names.contains(&name.trim_start_matches("HANDOFF_")));
        settings
    }

    /// Has workers trust this authority's certificates alone.
    pub fn trust(&mut self, authority: &Authority) {
        self.settings.insert("SSL_CERT_FILE".into(), authority.certificate_file());
        self.settings.insert("SSL_CERT_DIR".into(), String::new());
    }

    /// Puts a proxy in front of the server whose URL a setting holds.
    pub async fn proxy(&mut self, name: &str) -> Proxy {
        let direct = self.setting(name).to_owned();
        let proxy = Proxy::to(&direct).await;
        self.set(name, &proxy.url(&direct));
        proxy
    }

    /// The same for RabbitMQ, with a heartbeat short enough for a test.
    pub async fn amqp_proxy_with_heartbeat(&mut self, seconds: u32) -> Proxy {
        let proxy = self.proxy("AMQP_URL").await;
        let url = format!("{}?heartbeat={seconds}", self.setting("AMQP_URL"));
        self.set("AMQP_URL", &url);
        proxy
    }

    /// The settings as the crate reads them, for a worker that runs in the test's process.
    pub fn parsed_settings(&self) -> handoff::config::Settings {
        use clap::{Args, FromArgMatches};
        use handoff::config::{RunFlags, Settings};
        let flags = self.settings.iter().map(|(name, value)| {
            let flag = name.trim_start_matches("HANDOFF_").to_lowercase().replace('_', "-");
            format!("--{flag}={value}")
        });
        let flags = std::iter::once("run".to_owned()).chain(flags);
        let command = RunFlags::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(flags).unwrap();
        Settings::parse(&RunFlags::from_arg_matches(&matches).unwrap()).unwrap()
    }

    pub fn ended_queue(&self) -> String {
        format!("{}.ended", self.rabbitmq.queue)
    }

    /// The name of the queue for dead letters.
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.rabbitmq.queue)
    }

    /// How many dead letters there are.
    pub async fn dead_letters(&self) -> u32 {
        self.rabbitmq.depth(&self.dead_queue()).await
    }

    /// Publishes a request with this id for this user.
    pub async fn publish_request(&self, id: &str, user: &str) {
        self.rabbitmq.publish_request(id, json!({ "userId": user })).await;
    }

    /// Publishes request `r-0` for `user-0`, and so on.
    pub async fn publish_requests(&self, numbers: Range<usize>) {
        for n in numbers {
            self.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
        }
    }

    /// Receives events until `count` requests have one, and asserts that none failed, that repeated
    /// events have the same id, and that no request became a dead letter.
    pub async fn expect_all_ready(&mut self, count: usize) {
        let mut ids = BTreeMap::new();
        while ids.len() < count {
            let event = self.rabbitmq.next_event().await;
            assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
            let id = event.json()["id"].to_string();
            let data = event.data();
            let request = data["requestId"].as_str().unwrap().to_owned();
            assert_eq!(data["userId"], request.replace("r-", "user-"));
            let first_id = ids.entry(request).or_insert_with(|| id.clone());
            assert_eq!(*first_id, id);
        }
        assert_eq!(self.dead_letters().await, 0);
    }

    /// Publishes another request for each user of [`Self::publish_requests`].
    pub async fn request_again(&self, numbers: Range<usize>) {
        for number in numbers {
            self.publish_request(&format!("again-{number}"), &format!("user-{number}")).await;
        }
    }

    /// Receives events, and asserts that each has a link from the cache.
    pub async fn expect_all_reused(&mut self, count: usize) {
        let events = self.rabbitmq.next_events(count).await;
        assert!(events.iter().all(|event| event.data()["reused"] == true));
    }

    /// Starts a worker and waits until it consumes.
    pub async fn start_worker(&self) -> Worker {
        Worker::start_consuming(&self.settings).await
    }

    /// Has a worker declare the topology, and stops it.
    pub async fn declare_topology(&self) {
        let worker = self.start_worker().await;
        self.wait_for_consumer_of_endings().await;
        worker.stop().await;
    }

    /// Waits until a worker consumes endings: it declares and binds their queue alongside serving requests.
    pub async fn wait_for_consumer_of_endings(&self) {
        self.rabbitmq.wait_for_consumer(&self.ended_queue()).await;
    }

    /// Connects to RabbitMQ again after its restart, and consumes events again.
    pub async fn reconnect(&mut self) {
        self.rabbitmq = RabbitMq::connect(&self.amqp_url, &self.name).await;
        self.rabbitmq.consume_events_durably().await;
    }

    /// Overwrites a value in Redis.
    pub async fn set_redis_value(&self, key: &str, value: &[u8]) {
        redis::set(&mut redis::connect(&self.redis_url).await, key, value).await;
    }

    /// Deletes everything that Redis holds for this test.
    pub async fn delete_redis_values(&self) {
        redis::delete_all(&mut redis::connect(&self.redis_url).await, &self.name).await;
    }

    /// Deletes a value in Redis.
    pub async fn delete_redis_value(&self, key: &str) {
        redis::run(&mut redis::connect(&self.redis_url).await, &format!("DEL {key}")).await;
    }

    /// Everything Redis holds for this test.
    pub async fn redis_entries(&self) -> Vec<RedisEntry> {
        let mut entries = self.all_redis_entries().await;
        entries.retain(|entry| !entry.key.ends_with("}:s"));
        entries
    }

    /// The same with the index of sessions.
    pub async fn all_redis_entries(&self) -> Vec<RedisEntry> {
        redis::entries(&mut redis::connect(&self.redis_url).await, &self.name).await
    }
}

/// Removes what the test left on the shared RabbitMQ and Redis, whether it passed or not.
///
/// A node that belongs to the test is destroyed as a whole.
impl Drop for TestEnv {
    fn drop(&mut self) {
        let name = self.name.clone();
        let mut queues = vec![self.rabbitmq.queue.clone(), self.dead_queue(), self.ended_queue()];
        let delays = self.settings.get("HANDOFF_RETRY_DELAYS");
        let delays = delays.map_or("10s,1m,5m,15m", String::as_str).split(',');
        queues.extend(delays.map(|delay| format!("{}.retry.{delay}", self.rabbitmq.queue)));
        let exchanges =
            [self.rabbitmq.request_exchange.clone(), self.rabbitmq.event_exchange.clone()];
        let shared = |url: &str, variable| (url == required_env(variable)).then(|| url.to_owned());
        let shared_amqp = shared(&self.amqp_url, "HANDOFF_AMQP_URL");
        let shared_redis = shared(&self.redis_url, "HANDOFF_REDIS_URL");
        let cleanup = async move {
            if let Some(url) = shared_amqp {
                let rabbitmq = RabbitMq::connect(&url, &name).await;
                for queue in queues {
                    rabbitmq.delete_queue(&queue).await;
                }
                for exchange in exchanges {
                    rabbitmq.delete_exchange(&exchange).await;
                }
            }
            if let Some(url) = shared_redis {
                redis::delete_all(&mut redis::connect(&url).await, &name).await;
            }
        };
        // On another thread: the test's runtime is being dropped and can no longer block.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let cleaned = std::thread::spawn(move || runtime.block_on(cleanup)).join();
        assert!(cleaned.is_ok() || std::thread::panicking(), "the cleanup failed");
    }
}
