//! `/metrics` serves the metrics that the reference lists, with correct values.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{
    Answer, Flow, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    wait_until,
};

/// A metric's type, and the labels of its series.
type Metric = (String, BTreeSet<String>);

fn texts_in_backticks(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The metrics in the table of the reference.
fn documented() -> BTreeMap<String, Metric> {
    let reference = include_str!("../../docs/reference/metrics-and-logs.md");
    let section = reference.split_once("\n## Metrics\n").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let kind = cells[1].trim().split(',').next().unwrap().to_owned();
        let name = texts_in_backticks(cells[0]).next().unwrap();
        (name, (kind, texts_in_backticks(cells[1]).collect()))
    })
    .collect()
}

/// The metrics on a page without their values; a histogram's series count as the histogram.
fn served(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::<String, Metric>::new();
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        }
        if line.starts_with('#') {
            continue;
        }
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let name = name.strip_suffix(suffix)?;
            metrics.contains_key(name).then_some(name)
        });
        let metric = metrics.get_mut(of_histogram.unwrap_or(name)).unwrap_or_else(|| {
            panic!("{name} is not declared before its first series");
        });
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.split('=').next().unwrap().to_owned());
        metric.1.extend(labels.filter(|label| label != "le"));
    }
    metrics
}

/// Answers a session call as the user id says.
fn script(call: &Call) -> Answer {
    match call.body["metadata"]["externalUserId"].as_str() {
        Some("rejected") => Answer::status(422),
        Some("unlucky") => Answer::status(500),
        Some("late") if call.nth == 0 => Answer::status(429).header("retry-after", "1"),
        _ => success(call),
    }
}

/// Publishes a request, and returns the routing key of its event.
async fn outcome_of(env: &mut TestEnv, id: &str, user: &str) -> String {
    env.publish_request(id, user).await;
    env.rabbitmq.next_event().await.routing_key
}

/// Asserts the value of a series; one that does not exist counts as zero.
async fn assert_metric(worker: &Worker, series: &str, value: f64) {
    assert_eq!(worker.metric_or_zero(series).await, value, "{series}");
}

#[tokio::test]
async fn every_metric_is_documented_and_has_the_right_value() {
    let mut env = TestEnv::builder().platform(script).start().await;
    let proxy = env.proxy("REDIS_URL").await;
    let amqp = env.proxy("AMQP_URL").await;
    env.set("RETRY_BUDGET", "300ms").set("RETRY_DELAYS", "50ms");
    env.set("IDV_RATE_LIMIT", "1000/1s");
    let worker = env.start_worker().await;

    // A rate-limited request, a reused link, a rejection, and a request that fails twice.
    assert_eq!(outcome_of(&mut env, "r-1", "late").await, "handoff.ready");
    assert_eq!(outcome_of(&mut env, "r-2", "ann").await, "handoff.ready");
    assert_eq!(outcome_of(&mut env, "r-3", "ann").await, "handoff.ready");
    assert_eq!(outcome_of(&mut env, "r-4", "rejected").await, "handoff.failed");
    assert_eq!(outcome_of(&mut env, "r-5", "unlucky").await, "handoff.failed");
    let timestamp = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let properties = lapin::BasicProperties::default().with_timestamp(timestamp);
    env.rabbitmq.publish("not a request", properties).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_finished(7).await;

    let call = |call: &str, outcome: &str| {
        format!("handoff_platform_calls_total{{call=\"{call}\",outcome=\"{outcome}\"}}")
    };
    let outcome = |outcome: &str| format!("handoff_requests_total{{outcome=\"{outcome}\"}}");
    let published =
        |kind: &str| format!("handoff_publishes_total{{kind=\"{kind}\",outcome=\"confirmed\"}}");
    for (series, value) in [
        (outcome("ready"), 2.0),
        (outcome("reused"), 1.0),
        (outcome("failed"), 3.0),
        (outcome("retried"), 1.0),
        (call("session", "ok"), 2.0),
        (call("session", "rejected"), 1.0),
        (call("session", "rate_limited"), 1.0),
        (published("ready"), 3.0),
        (published("failed"), 3.0),
        (published("retry"), 1.0),
        (published("dead_letter"), 3.0),
        (published("postponed"), 0.0),
        ("handoff_cache_lookups_total{result=\"hit\"}".to_owned(), 1.0),
        ("handoff_cache_lookups_total{result=\"miss\"}".to_owned(), 5.0),
        ("handoff_request_duration_seconds_count".to_owned(), 7.0),
        ("handoff_publish_confirm_seconds_count".to_owned(), 10.0),
        ("handoff_end_to_end_seconds_count".to_owned(), 1.0),
        ("handoff_lease_wait_seconds_count".to_owned(), 0.0),
        ("handoff_cache_errors_total".to_owned(), 0.0),
        ("handoff_cache_reconnects_total".to_owned(), 0.0),
        ("handoff_broker_reconnects_total".to_owned(), 0.0),
        ("handoff_broker_connected".to_owned(), 1.0),
        ("handoff_platform_paused".to_owned(), 0.0),
        ("handoff_in_flight".to_owned(), 0.0),
    ] {
        assert_metric(&worker, &series, value).await;
    }
    let tokens = env.platform.token_calls().len() as f64;
    let sessions = env.platform.session_calls().len() as f64;
    assert_metric(&worker, &call("token", "ok"), tokens).await;
    assert_metric(&worker, &call("session", "unavailable"), sessions - 4.0).await;
    assert_metric(&worker, "handoff_rate_limit_wait_seconds_count", tokens + sessions).await;
    // Both attempts of the unlucky request end with a call that is not retried.
    let retries = |reason: &str| {
        format!("handoff_platform_retries_total{{call=\"session\",reason=\"{reason}\"}}")
    };
    assert_metric(&worker, &retries("rate_limited"), 1.0).await;
    assert_metric(&worker, &retries("unavailable"), sessions - 4.0 - 2.0).await;
    let paused = "handoff_platform_paused_seconds_total{reason=\"asked_to_wait\"}";
    let paused_s = worker.metric(paused).await;
    assert!((0.9..1.1).contains(&paused_s), "{paused_s}");

    // Redis becomes unavailable, and available again.
    proxy.set_flow(Flow::Dropped);
    assert_eq!(outcome_of(&mut env, "r-6", "ann").await, "handoff.ready");
    worker.wait_for_finished(8).await;
    worker.wait_for_log(log_text::REDIS_UNAVAILABLE).await;
    assert!(worker.metric("handoff_cache_errors_total").await >= 1.0);
    assert_metric(&worker, "handoff_cache_lookups_total{result=\"miss\"}", 5.0).await;
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_log(log_text::REDIS_RECONNECTED).await;
    assert_metric(&worker, "handoff_cache_reconnects_total", 1.0).await;
    amqp.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    assert_metric(&worker, "handoff_broker_reconnects_total", 1.0).await;

    wait_until("a look at the queues", async || {
        worker.metric_or_zero("handoff_queue_consumers{queue=\"request\"}").await == 1.0
    })
    .await;
    let (_, page) = worker.get("/metrics").await;
    assert_eq!(served(&page), documented());
    let started = worker.metric("process_start_time_seconds").await;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((0.0..120.0).contains(&(now - started)), "{started} at {now}");
    assert!(worker.metric("process_resident_memory_bytes").await > 1e6);
    if let Some(path) = std::env::var_os("HANDOFF_TEST_KEEP_METRICS") {
        std::fs::write(path, page).unwrap();
    }
}

#[tokio::test]
async fn paused_time_and_lease_waits_are_counted() {
    let (latch, script) = hold_calls(|call| !call.is_token());
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "1");
    let workers = [env.start_worker().await, env.start_worker().await];
    let sum =
        async |series: &str| workers[0].metric(series).await + workers[1].metric(series).await;
    // One worker makes the link, the other waits for its lease.
    env.publish_request("r-1", "ann").await;
    env.publish_request("r-2", "ann").await;
    env.platform.wait_for_calls(2).await;
    wait_until("both are in flight", async || sum("handoff_in_flight").await == 2.0).await;
    // No output shows that the second waits; it polls Redis within this time.
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    latch.open();
    env.rabbitmq.next_events(2).await;
    assert_eq!(sum("handoff_lease_wait_seconds_count").await, 1.0);
    let waited = sum("handoff_lease_wait_seconds_sum").await;
    assert!((0.1..30.0).contains(&waited), "{waited}");

    // The first probe of a platform that refuses token calls follows after a second.
    env.platform.set_script(|_| Answer::status(403));
    env.publish_request("r-3", "bob").await;
    env.platform.wait_for_calls(3).await;
    wait_until("a pause", async || sum("handoff_platform_paused").await == 1.0).await;
    env.platform.set_script(success);
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
    let paused = "handoff_platform_paused_seconds_total{reason=\"refused\"}";
    let total = sum(paused).await;
    assert!((0.9..30.0).contains(&total), "{total}");
    assert_eq!(sum("handoff_platform_paused").await, 0.0);
    assert_eq!(sum(paused).await, total, "the pause is over");
    assert_eq!(sum("handoff_platform_paused_seconds_total{reason=\"down\"}").await, 0.0);
}
