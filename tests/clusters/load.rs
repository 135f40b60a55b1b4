//! Requests at a steady rate, while a test breaks something.

use std::time::Duration;

use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time::interval};

use crate::support::{RabbitMq, TestEnv};

/// Publishes a request for a new person every 20 ms, and one for an earlier person with it, until stopped.
pub struct Load {
    stop: watch::Sender<bool>,
    task: JoinHandle<usize>,
}

impl Load {
    pub fn start(env: &TestEnv) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (url, name) = (env.setting("AMQP_URL").to_owned(), env.name.clone());
        let task = tokio::spawn(async move {
            let rabbitmq = RabbitMq::connect(&url, &name).await;
            let mut interval = interval(Duration::from_millis(20));
            let mut number = 0_usize;
            while !*stopped.borrow_and_update() {
                interval.tick().await;
                let users = [number, number.saturating_sub(25)];
                for (nth, user) in users.into_iter().enumerate() {
                    let id = format!("r-{number}-{nth}");
                    let data = json!({ "userId": format!("user-{user}") });
                    rabbitmq.publish_request(&id, data).await;
                }
                number += 1;
            }
            number
        });
        Self { stop, task }
    }

    /// Stops, and returns how many people there were.
    pub async fn stop(self) -> usize {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

/// Receives an event for each request, and returns how many sessions were more than one for each person.
pub async fn second_sessions(env: &mut TestEnv, people: usize) -> usize {
    let events = env.rabbitmq.next_events(2 * people).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    env.platform.session_calls().len() - people
}
