//! A Redis Cluster: links are reused and single-flight works, whatever happens to its nodes.

mod cluster;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use self::cluster::Servers;
use crate::support::{TestEnv, log_text};

/// An environment whose workers use this cluster.
async fn env(cluster: &Servers) -> TestEnv {
    let mut env = TestEnv::start().await;
    env.set("REDIS_MODE", "cluster").set("REDIS_URL", &cluster.urls);
    env
}

#[tokio::test]
async fn links_of_all_slots_are_stored_and_reused_and_the_rate_limit_is_shared() {
    let cluster = Servers::cluster(&[]).await;
    let mut env = env(&cluster).await;
    env.set("IDV_RATE_LIMIT", "1000/1s");
    let workers = [env.start_worker().await, env.start_worker().await];
    // Requests for one person come in pairs: one session for each.
    env.publish_requests(0..100).await;
    env.request_again(0..100).await;
    let events = env.rabbitmq.next_events(200).await;
    let mut sessions = BTreeMap::<String, Vec<String>>::new();
    for event in events {
        let data = event.data();
        let (user, session) = (data["userId"].to_string(), data["sessionId"].to_string());
        sessions.entry(user).or_default().push(session);
    }
    assert!(sessions.values().all(|sessions| sessions[0] == sessions[1]), "{sessions:?}");
    assert_eq!(env.platform.session_calls().len(), 100);
    env.request_again(0..100).await;
    env.expect_all_reused(100).await;
    // One link, one index and so on for each person, spread over the primaries.
    for primary in ["1", "2", "3"] {
        let keys: Vec<String> = cluster.ask(primary, &format!("KEYS {}:*", env.name)).await;
        assert!(keys.len() > 10, "{primary}: {}", keys.len());
    }
    for worker in workers {
        assert_eq!(worker.log_lines(log_text::REDIS_UNAVAILABLE).len(), 0);
        worker.stop().await;
    }
}

/// Publishes a request for a new person every 20 ms, and one for an earlier person with it, until stopped.
struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn start(env: &TestEnv) -> Self {
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let (settings, name) = (env.setting("AMQP_URL").to_owned(), env.name.clone());
        let task = tokio::spawn(async move {
            let rabbitmq = crate::support::RabbitMq::connect(&settings, &name).await;
            let mut interval = tokio::time::interval(Duration::from_millis(20));
            let mut number = 0_usize;
            while !*stopped.borrow_and_update() {
                interval.tick().await;
                let users = [number, number.saturating_sub(25)];
                for (nth, user) in users.into_iter().enumerate() {
                    let id = format!("r-{number}-{nth}");
                    let data = serde_json::json!({ "userId": format!("user-{user}") });
                    rabbitmq.publish_request(&id, data).await;
                }
                number += 1;
            }
            number
        });
        Self { stop, task }
    }

    /// Stops, and returns how many people there were.
    async fn stop(self) -> usize {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn killed_primary_costs_no_second_session_and_its_replica_serves_within_a_second() {
    let cluster = Servers::cluster(&["--cluster-node-timeout", "1000"]).await;
    let mut env = env(&cluster).await;
    env.set("REDIS_PATIENCE", "10s");
    let _workers = [env.start_worker().await, env.start_worker().await];
    let load = Load::start(&env);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let killed = Instant::now();
    cluster.run("kill", "1").await;
    cluster.wait_for_primary("4").await;
    let promoted = killed.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let people = load.stop().await;
    let events = env.rabbitmq.next_events(2 * people).await;
    let sessions = env.platform.session_calls();
    println!("promoted after {promoted:?}; {people} people, {} sessions", sessions.len());
    assert_eq!(events.len(), 2 * people);
    assert_eq!(sessions.len(), people);
}
