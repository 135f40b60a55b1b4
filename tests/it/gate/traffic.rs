//! Mixed traffic: when each request was published, and which event ended it when.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use lapin::{BasicProperties, types::AMQPValue};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::support::{Message, TestEnv, platform::Call, wait_until};

/// The requests of one test, by id.
pub struct Traffic {
    requests: BTreeMap<String, Sent>,
    /// Between two good requests.
    interval: Duration,
}

struct Sent {
    published: Instant,
    ended: Option<Ended>,
}

/// The first event of a request.
#[derive(Clone, Debug)]
pub struct Ended {
    pub at: Instant,
    pub key: String,
    pub data: Value,
}

/// One request's wait for its event.
pub struct Wait<'a> {
    pub id: &'a str,
    pub published: Instant,
    pub ended: Option<&'a Ended>,
}

impl Wait<'_> {
    /// From its publication to its event, or until now.
    pub fn duration(&self) -> Duration {
        self.ended.map_or_else(Instant::now, |ended| ended.at) - self.published
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self { requests: BTreeMap::new(), interval: Duration::from_secs(1) }
    }
}

impl Traffic {
    /// With this interval between good requests instead of a second.
    pub fn every(interval: Duration) -> Self {
        Self { interval, ..Self::default() }
    }

    /// Publishes a request, with its id as its user unless `data` names one.
    pub async fn publish(&mut self, env: &TestEnv, id: &str, data: Value) {
        self.publish_with(env, id, data, BasicProperties::default()).await;
    }

    /// The same, with AMQP properties.
    pub async fn publish_with(
        &mut self,
        env: &TestEnv,
        id: &str,
        mut data: Value,
        properties: BasicProperties,
    ) {
        if data.get("userId").is_none() {
            data["userId"] = json!(id);
        }
        let published = Instant::now();
        env.rabbitmq.publish(data.to_string(), properties.with_message_id(id.into())).await;
        self.requests.insert(id.to_owned(), Sent { published, ended: None });
    }

    /// Publishes request `good-0` with this data, and another at each interval while `more`, and receives
    /// events, until it publishes no more and is `done`, for `limit` at most.
    pub async fn run(
        &mut self,
        env: &mut TestEnv,
        good: Value,
        limit: Duration,
        more: impl Fn(&Self) -> bool,
        done: impl Fn(&Self) -> bool,
    ) {
        let end = tokio::time::Instant::now() + limit;
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while more(self) || !done(self) {
            tokio::select! {
                event = env.rabbitmq.next_event() => self.record(&event),
                _ = ticks.tick() => if more(self) {
                    let id = format!("good-{}", self.waits("good").len());
                    self.publish(env, &id, good.clone()).await;
                },
                () = sleep_until(end) => return,
            }
        }
    }

    fn record(&mut self, event: &Message) {
        let data = event.data();
        let id = data["requestId"].as_str().unwrap();
        let sent = self.requests.get_mut(id).unwrap();
        let ended = Ended { at: Instant::now(), key: event.routing_key.clone(), data };
        sent.ended.get_or_insert(ended);
    }

    /// The requests whose ids begin with `prefix`.
    pub fn waits<'a>(&'a self, prefix: &str) -> Vec<Wait<'a>> {
        let requests = self.requests.iter().filter(|(id, _)| id.starts_with(prefix));
        let wait = |(id, sent): (&'a String, &'a Sent)| Wait {
            id,
            published: sent.published,
            ended: sent.ended.as_ref(),
        };
        requests.map(wait).collect()
    }

    /// Whether each request whose id begins with `prefix` has its event.
    pub fn have_ended(&self, prefix: &str) -> bool {
        self.waits(prefix).iter().all(|wait| wait.ended.is_some())
    }

    /// When the first good request was served.
    pub fn first_served(&self) -> Option<Instant> {
        self.waits("good").iter().filter_map(|wait| wait.ended).map(|ended| ended.at).min()
    }

    /// Asserts that each good request was served within `limit` of its publication.
    pub fn assert_served_within(&self, limit: Duration) {
        for wait in self.waits("good") {
            let served = wait.ended.is_some_and(|ended| ended.key == "handoff.ready");
            let took = wait.duration();
            assert!(served && took <= limit, "{}: {took:.1?} > {limit:.1?}\n{self}", wait.id);
        }
    }

    /// Asserts that each bad request was retried until its attempts were spent.
    pub async fn assert_exhausted(&self, env: &TestEnv, attempts: u32) {
        let bad = self.waits("bad");
        for wait in &bad {
            let data = wait.ended.map(|ended| &ended.data);
            let data = data.unwrap_or_else(|| panic!("{} has no event\n{self}", wait.id));
            assert_eq!(data["reason"]["code"], "retries_exhausted", "{data}\n{self}");
            assert_eq!(data["attempts"], attempts, "{data}\n{self}");
        }
        let letters = async || env.dead_letters().await as usize == bad.len();
        wait_until("one dead letter for each", letters).await;
    }
}

/// For the message of a failed assertion: each request's wait, and how it ended.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for wait in self.waits("") {
            let end = match wait.ended {
                Some(Ended { key, data, .. }) if key == "handoff.failed" => {
                    format!("{} after {} attempts", data["reason"]["code"], data["attempts"])
                }
                Some(Ended { key, .. }) => key.clone(),
                None => "no event".to_owned(),
            };
            writeln!(f, "{}: {:.1?}, {end}", wait.id, wait.duration())?;
        }
        Ok(())
    }
}

/// Whether this is a session call for this workflow.
pub fn workflow_is(call: &Call, workflow: &str) -> bool {
    !call.is_token() && call.query.as_deref() == Some(&format!("workflowId={workflow}"))
}

/// An integer header of any size; 0 if it is missing.
pub fn count_header(message: &Message, name: &str) -> i64 {
    match message.header(name) {
        None => 0,
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        other => panic!("{name} is {other:?}"),
    }
}
