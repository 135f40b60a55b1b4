//! Session calls that fail for one workflow, or one kind of request, while the platform serves others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    checks::readiness,
    readiness::{ReadinessLog, pauses_around_first_success},
    traffic::{Traffic, workflow_is},
};
use crate::support::{
    Answer, Latch, TestEnv, Worker, log_text,
    platform::{Call, success},
};

/// The limit of one platform call in these tests.
const CALL: Duration = Duration::from_secs(1);
/// What two loaded cores and the interval between probes add to a computed wait.
const SLACK: Duration = Duration::from_secs(3);

/// Failing requests, published at once, and good ones that follow, one a second.
struct Case {
    replicas: u32,
    concurrency: u32,
    budget: Duration,
    /// The retry delays; one attempt more than these is made.
    delays: &'static str,
    failing: Vec<Value>,
    good: Value,
    /// At least this many good ones.
    good_count: usize,
    /// Whether they also go on until the failing ones have ended.
    good_until_end: bool,
}

impl Case {
    /// `count` requests of the workflow `bad`, and a short budget.
    fn bad_workflow(count: usize) -> Self {
        Self {
            replicas: 1,
            concurrency: 8,
            budget: Duration::from_secs(1),
            delays: "500ms,1s",
            failing: vec![json!({ "workflowId": "bad" }); count],
            good: json!({ "workflowId": "good" }),
            good_count: 6,
            good_until_end: false,
        }
    }

    /// The longest that a good request may wait: (failing ones ahead ÷ slots + 1) × (budget + one call).
    fn longest_wait(&self, failing: usize) -> Duration {
        let slots = self.replicas * self.concurrency;
        let turns = failing as f64 / f64::from(slots) + 1.0;
        (self.budget + CALL).mul_f64(turns) + SLACK
    }

    async fn start(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Running {
        let mut env = TestEnv::builder().platform(script).start().await;
        env.set("CONCURRENCY", &self.concurrency.to_string())
            .set("RETRY_BUDGET", &format!("{}ms", self.budget.as_millis()))
            .set("RETRY_DELAYS", self.delays)
            .set("IDV_TIMEOUT", &format!("{}ms", CALL.as_millis()));
        let mut running = Running { env, workers: vec![], readiness: vec![] };
        for _ in 0..self.replicas {
            let worker = running.env.start_worker().await;
            running.readiness.push(ReadinessLog::start(&worker).await);
            running.workers.push(worker);
        }
        running
    }

    /// Publishes the requests, and asserts that the good ones are served and the failing ones end.
    async fn serve(&self, env: &mut TestEnv) -> Traffic {
        let mut traffic = Traffic::default();
        for (n, data) in self.failing.iter().enumerate() {
            traffic.publish(env, &format!("bad-{n}"), data.clone()).await;
        }
        let attempts = self.delays.split(',').count() + 1;
        let limit = self.longest_wait(self.failing.len() * attempts) + Duration::from_secs(5);
        let more = |traffic: &Traffic| {
            traffic.waits("good").len() < self.good_count
                || (self.good_until_end && !traffic.have_ended("bad"))
        };
        let done = |traffic: &Traffic| traffic.have_ended("");
        traffic.run(env, self.good.clone(), limit, more, done).await;
        traffic.assert_served_within(self.longest_wait(self.failing.len()));
        traffic.assert_exhausted(env, u32::try_from(attempts).unwrap()).await;
        traffic
    }
}

/// A case in progress.
struct Running {
    env: TestEnv,
    workers: Vec<Worker>,
    readiness: Vec<ReadinessLog>,
}

impl Running {
    /// Asserts that no replica paused once it had served a request.
    async fn assert_no_pause_after_first_success(&self) {
        for worker in &self.workers {
            let (before, after) = pauses_around_first_success(worker);
            assert_eq!(after, 0, "pauses after the first success; before: {before}");
            // A replica that has served no one yet cannot know that the platform works.
            let finished = worker.log_lines(log_text::REQUEST_FINISHED);
            if finished.iter().any(|line| line["outcome"] == "ready") {
                assert_eq!(readiness(worker).await, (200, Value::Null));
            }
        }
    }
}

/// Fails session calls of the workflow `bad`.
fn bad_fails(call: &Call) -> Answer {
    if workflow_is(call, "bad") { Answer::status(500) } else { success(call) }
}

#[tokio::test]
async fn failing_workflow_delays_others_by_its_budget_and_ends_after_a_cold_start() {
    let case = Case {
        budget: Duration::from_secs(2),
        delays: "1s,2s",
        good_count: 8,
        ..Case::bad_workflow(20)
    };
    let mut running = case.start(bad_fails).await;
    let traffic = case.serve(&mut running.env).await;
    running.assert_no_pause_after_first_success().await;
    running.readiness[0].assert_since(traffic.first_served().unwrap(), 200);
}

#[tokio::test]
async fn failing_workflow_is_no_outage_once_another_was_served() {
    let case = Case::bad_workflow(20);
    let mut running = case.start(bad_fails).await;
    let began = Instant::now();
    let mut warm_up = Traffic::default();
    warm_up.publish(&running.env, "good-first", case.good.clone()).await;
    let event = running.env.rabbitmq.next_event().await;
    assert_eq!(event.routing_key, "handoff.ready");
    case.serve(&mut running.env).await;
    assert!(running.workers[0].log_lines(log_text::BREAKER_OPEN).is_empty());
    running.readiness[0].assert_since(began, 200);
}

#[tokio::test]
async fn workflow_that_times_out_is_no_outage() {
    let never = Latch::closed();
    let script = move |call: &Call| {
        let answer = success(call);
        if workflow_is(call, "bad") { answer.held_by(&never) } else { answer }
    };
    let case = Case::bad_workflow(12);
    let mut running = case.start(script).await;
    let traffic = case.serve(&mut running.env).await;
    running.assert_no_pause_after_first_success().await;
    running.readiness[0].assert_since(traffic.first_served().unwrap(), 200);
}

#[tokio::test]
async fn failing_locale_stops_no_other_request_of_its_workflow() {
    let script = |call: &Call| {
        if call.body["locale"] == "xx" { Answer::status(500) } else { success(call) }
    };
    // Without good requests this would be an outage of the workflow, so they go on until the end.
    let case = Case {
        failing: vec![json!({ "locale": "xx" }); 12],
        good: json!({}),
        good_until_end: true,
        ..Case::bad_workflow(0)
    };
    let mut running = case.start(script).await;
    case.serve(&mut running.env).await;
    assert_eq!(readiness(&running.workers[0]).await, (200, Value::Null));
}

#[tokio::test]
async fn failing_workflow_leaves_the_only_slot_to_others() {
    let case = Case { concurrency: 1, delays: "500ms", ..Case::bad_workflow(5) };
    let mut running = case.start(bad_fails).await;
    case.serve(&mut running.env).await;
    running.assert_no_pause_after_first_success().await;
}

#[tokio::test]
async fn requests_of_one_user_of_a_failing_workflow_delay_no_other_user() {
    let one_user = json!({ "workflowId": "bad", "userId": "ann" });
    let case = Case { failing: vec![one_user; 12], ..Case::bad_workflow(0) };
    let mut running = case.start(bad_fails).await;
    case.serve(&mut running.env).await;
    running.assert_no_pause_after_first_success().await;
}

#[tokio::test]
async fn failing_workflow_is_no_outage_for_any_replica() {
    let case = Case { replicas: 2, concurrency: 4, ..Case::bad_workflow(20) };
    let mut running = case.start(bad_fails).await;
    case.serve(&mut running.env).await;
    running.assert_no_pause_after_first_success().await;
}
