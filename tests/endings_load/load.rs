//! Publishes requests and endings, and records when, and what came of the requests.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::BasicProperties;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    support::{TestEnv, rabbitmq::RabbitMq, wait_until},
    workers::Workers,
};

/// How long sessions live: see `SESSION_TTL` of the settings.
const SESSION_TTL: Duration = Duration::from_secs(30 * 60);
/// How long after its event a session ends, at most.
const LONGEST_SESSION: Duration = Duration::from_secs(3);
/// How long the last endings may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// What an event said.
#[derive(Clone, Debug)]
pub struct Served {
    pub request: String,
    pub user: String,
    pub session: String,
    /// When its session was asked for.
    pub made_at: OffsetDateTime,
    /// When the request was published.
    pub published_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
}

/// What has ended.
#[derive(Clone, Debug)]
pub struct Ending {
    pub id: String,
    pub user: Option<String>,
    pub session: Option<String>,
    /// The property `timestamp`.
    pub timestamp: i64,
    pub published_at: OffsetDateTime,
    pub confirmed_at: OffsetDateTime,
}

pub struct Load {
    publisher: Arc<RabbitMq>,
    people: usize,
    rng: Mutex<StdRng>,
    pub served: Mutex<Vec<Served>>,
    pub endings: Arc<Mutex<Vec<Ending>>>,
}

impl Load {
    pub async fn new(env: &TestEnv, seed: u64, people: usize) -> Self {
        let publisher = RabbitMq::connect(env.setting("AMQP_URL"), &env.name).await;
        Self {
            publisher: Arc::new(publisher),
            people,
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            served: Mutex::default(),
            endings: Arc::default(),
        }
    }

    /// Publishes the requests at a rate, an ending for the event of each, and kills a worker in the middle.
    pub async fn run(&self, env: &mut TestEnv, workers: &mut Workers, requests: usize, rate: u32) {
        let mut published = vec![None; requests];
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut publishing = FuturesUnordered::new();
        let mut ending = FuturesUnordered::new();
        let mut seen = HashSet::new();
        let mut next = 0;
        let mut has_killed = false;
        while seen.len() < requests {
            tokio::select! {
                _ = ticks.tick(), if next < requests => {
                    let user = format!("user-{}", self.random(0..self.people));
                    let publisher = Arc::clone(&self.publisher);
                    published[next] = Some(OffsetDateTime::now_utc());
                    let id = format!("r-{next}");
                    publishing.push(async move {
                        publisher.publish_request(&id, json!({ "userId": user })).await;
                    });
                    next += 1;
                }
                event = env.rabbitmq.next_event() => {
                    assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
                    let served = served(&event.data(), &published);
                    // A redelivered request has a second event.
                    if seen.insert(served.request.clone()) {
                        ending.push(self.end_later(&served, seen.len()));
                    }
                    self.served.lock().unwrap().push(served);
                }
                Some(()) = publishing.next() => {}
                Some(()) = ending.next() => {}
            }
            if seen.len() >= requests / 2 && !has_killed {
                has_killed = true;
                println!("a worker is killed after {} events", seen.len());
                workers.kill_one(env).await;
            }
        }
        while ending.next().await.is_some() {}
        let started = Instant::now();
        wait_until("all endings are finished", async || {
            sleep(Duration::from_secs(1)).await;
            assert!(started.elapsed() < DRAIN_LIMIT);
            workers.finished().len() >= requests
        })
        .await;
    }

    /// Ends a session by itself, by its user, or by both, some time after its event.
    fn end_later(&self, served: &Served, number: usize) -> impl Future<Output = ()> + use<> {
        let delay =
            Duration::from_millis(self.random(0..LONGEST_SESSION.as_millis() as usize) as u64);
        let kind = self.random(0..3);
        let user = (kind != 0).then(|| served.user.clone());
        let session = (kind != 1).then(|| served.session.clone());
        let publisher = Arc::clone(&self.publisher);
        let endings = Arc::clone(&self.endings);
        async move {
            sleep(delay).await;
            let published_at = OffsetDateTime::now_utc();
            let timestamp = published_at.unix_timestamp();
            let id = format!("e-{number}");
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_timestamp(timestamp.unsigned_abs());
            let mut data = json!({});
            if let Some(user) = &user {
                data["userId"] = user.as_str().into();
            }
            if let Some(session) = &session {
                data["sessionId"] = session.as_str().into();
            }
            publisher.publish_ending(data, properties).await;
            let confirmed_at = OffsetDateTime::now_utc();
            let ending = Ending { id, user, session, timestamp, published_at, confirmed_at };
            endings.lock().unwrap().push(ending);
        }
    }

    fn random(&self, range: std::ops::Range<usize>) -> usize {
        self.rng.lock().unwrap().random_range(range)
    }
}

fn served(data: &Value, published: &[Option<OffsetDateTime>]) -> Served {
    let text = |name: &str| data[name].as_str().unwrap().to_owned();
    let request = text("requestId");
    let number: usize = request.trim_start_matches("r-").parse().unwrap();
    let ends_at = OffsetDateTime::parse(&text("expiresAt"), &Rfc3339).unwrap();
    Served {
        user: text("userId"),
        session: text("sessionId"),
        made_at: ends_at - SESSION_TTL,
        published_at: published[number].unwrap(),
        received_at: OffsetDateTime::now_utc(),
        request,
    }
}
