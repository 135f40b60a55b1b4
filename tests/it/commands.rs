//! `handoff demo`, `request` and `sandbox`, as a person or a script runs them.

use std::process::Output;

use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::support::{
    Answer, TempFile, TestEnv,
    platform::{Call, success},
    required_env, within_timeout,
    worker::{Settings, command},
};

async fn run(arguments: &[&str], settings: &Settings) -> Output {
    within_timeout("its exit", command(arguments, settings).output()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The settings that a client of the worker reads.
fn client_settings(env: &TestEnv) -> Settings {
    env.only(&["AMQP_URL", "QUEUE", "REQUEST_EXCHANGE", "EVENT_EXCHANGE", "RETRY_DELAYS"])
}

fn events(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn demo_shows_new_and_reused_links_and_the_end_of_a_verification() {
    // Names unique to this test, on the RabbitMQ that all tests share.
    let env = TestEnv::builder().without_event_queue().start().await;
    let mut settings = client_settings(&env);
    settings.insert("HANDOFF_REDIS_URL".into(), required_env("HANDOFF_REDIS_URL"));
    settings.insert("HANDOFF_KEY_PREFIX".into(), env.name.clone());
    for (flow, page, calls) in [
        ("token", "/capture?url=http%3A%2F%2F127.0.0.1%3A", 12),
        ("deeplink", "/mobile?authorization=", 6),
    ] {
        let output = run(&["demo", "--flow", flow], &settings).await;
        let shown = stdout(&output);
        assert!(output.status.success(), "{shown}\n{}", stderr(&output));
        let count = |shown: &str, link: &str| {
            shown.lines().filter(|line| line.contains(&format!("  ready    {link} "))).count()
        };
        let (before, after) = shown.split_once("ann finishes the verification").unwrap();
        assert_eq!((count(before, "new"), count(before, "reused")), (5, 2), "{shown}");
        assert_eq!((count(after, "new"), count(after, "reused")), (1, 0), "{shown}");
        let again = after.lines().find(|line| line.contains("  ready    new ")).unwrap();
        assert!(again.ends_with("  ann"), "{shown}");
        for text in ["verification.ended is published", "the next request gets a new one"] {
            assert!(after.contains(text), "{shown}");
        }
        let (_, end) = after.split_once(again).unwrap();
        let text = "The former link now says that the verification is over; the new one opens.";
        assert!(end.trim_start().starts_with(text), "{shown}");
        assert!(end.lines().any(|line| line.starts_with("http") && line.contains(page)), "{shown}");
        assert!(shown.contains("▄▄▄▄▄▄▄▄▄▄▄▄▄▄"), "the QR code: {shown}");
        assert!(
            shown.contains("8 requests, 8 events: 6 new links, 2 reused; every link opened."),
            "{shown}"
        );
        assert!(shown.contains(&format!("6 sessions made with {calls} platform calls")), "{shown}");
        assert_eq!(stderr(&output), "");
    }
}

#[tokio::test]
async fn demo_with_serve_runs_until_it_is_stopped() {
    let env = TestEnv::builder().without_event_queue().start().await;
    let mut settings = client_settings(&env);
    settings.insert("HANDOFF_REDIS_URL".into(), required_env("HANDOFF_REDIS_URL"));
    settings.insert("HANDOFF_KEY_PREFIX".into(), env.name.clone());
    let mut demo = command(&["demo", "--serve"], &settings)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    while let Some(line) = within_timeout("the next line", lines.next_line()).await.unwrap() {
        if line.contains("in another terminal") || line.contains("In another terminal") {
            break;
        }
    }
    let client = client_settings(&env);
    let output = run(&["request", "--user", "dora"], &client).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(events(&output)[0]["data"]["workflowId"], "demo");
    crate::support::worker::signal(&demo, "INT");
    assert!(within_timeout("the demo's exit", demo.wait()).await.unwrap().success());
}

#[tokio::test]
async fn demo_refuses_a_queue_in_use() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let mut settings = client_settings(&env);
    settings.insert("HANDOFF_REDIS_URL".into(), required_env("HANDOFF_REDIS_URL"));
    let output = run(&["demo"], &settings).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(stderr.contains(&env.rabbitmq.queue) && stderr.contains("1 consumers"), "{stderr}");
}

#[tokio::test]
async fn demo_refuses_to_take_endings_of_others() {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    let ending = json!({ "sessionId": "session-1" });
    env.rabbitmq.publish_ending(ending, BasicProperties::default()).await;
    let mut settings = client_settings(&env);
    settings.insert("HANDOFF_REDIS_URL".into(), required_env("HANDOFF_REDIS_URL"));
    let output = run(&["demo"], &settings).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    let queue = format!("`{}.ended` is in use (0 consumers, 1 messages)", env.rabbitmq.queue);
    assert!(stderr.contains(&queue), "{stderr}");
}

#[tokio::test]
async fn request_is_published_and_its_event_printed() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let arguments = [
        "request",
        "--user",
        "ann",
        "--workflow",
        "w",
        "--metadata",
        "plan=gold",
        "--metadata",
        "note=a=b",
        "--locale",
        "de",
        "--qr",
    ];
    let output = run(&arguments, &client_settings(&env)).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let [event] = &events(&output)[..] else { panic!("one event: {}", stdout(&output)) };
    assert_eq!(event["type"], "handoff.ready");
    assert_eq!(event["data"]["userId"], "ann");
    assert!(
        stderr(&output).contains("▄▄▄▄▄▄▄"),
        "the QR code goes to stderr, not between the results"
    );
    assert_eq!(
        env.platform.session_calls()[0].body,
        json!({ "metadata": { "plan": "gold", "note": "a=b", "externalUserId": "ann" }, "locale": "de" })
    );
    for (qr, link) in [("--qr=url", "url"), ("--qr=mobile", "mobileUrl")] {
        let again = ["request", "--user", "ann", "--workflow", "w", qr];
        let output = run(&again, &client_settings(&env)).await;
        let link = event["data"][link].as_str().unwrap();
        assert_eq!(stderr(&output).lines().last(), Some(link), "its QR code and its text");
    }
    let renewed =
        run(&["request", "--user", "ann", "--workflow", "w", "--renew"], &client_settings(&env))
            .await;
    assert_eq!(events(&renewed)[0]["data"]["reused"], false);
}

#[tokio::test]
async fn requests_are_read_from_a_file() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let lines: String = (0..200).map(|n| format!("{{\"userId\":\"user-{n}\"}}\n\n")).collect();
    let file = TempFile::new(&lines);
    let output = run(&["request", "--file", file.path()], &client_settings(&env)).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let mut users: Vec<_> =
        events(&output).iter().map(|event| event["data"]["userId"].to_string()).collect();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 200);
    assert_eq!(stderr(&output), "", "no progress bar without a terminal");
}

#[tokio::test]
async fn failed_event_exits_with_status_1() {
    let script = |call: &Call| {
        if call.user_is("bad") { Answer::status(400) } else { success(call) }
    };
    let env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    let file = TempFile::new("{\"userId\":\"bad\"}\n{\"userId\":\"good\"}\n");
    let output = run(&["request", "--file", file.path()], &client_settings(&env)).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(events(&output).len(), 2, "the other event is printed too");
    assert!(stderr(&output).contains("1 of 2 requests failed"), "{}", stderr(&output));
}

#[tokio::test]
async fn request_without_an_event_fails_after_the_wait() {
    let env = TestEnv::start().await;
    // Events of other requests do not extend the wait.
    let other_events = async {
        loop {
            let event = json!({ "type": "handoff.ready", "data": { "requestId": "other" } });
            env.rabbitmq.publish_event("handoff.ready", event.to_string()).await;
        }
    };
    let client = client_settings(&env);
    let request = run(&["request", "--user", "ann", "--wait", "1s"], &client);
    let output = tokio::select! {
        output = request => output,
        () = other_events => unreachable!(),
    };
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--wait"), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

#[tokio::test]
async fn invalid_request_input_is_refused_before_connecting() {
    let nowhere = Settings::from([(
        "HANDOFF_AMQP_URL".to_owned(),
        "amqp://guest:guest@127.0.0.1:1/%2f".to_owned(),
    )]);
    let truncated = TempFile::new("{\"userId\":\"ann\"}\n{\"userId\":\n");
    let envelope = TempFile::new(
        r#"{"specversion":"1.0","id":"1","source":"/a","type":"verification.requested","data":{"userId":"u"}}"#,
    );
    let empty = TempFile::new("\n");
    let long = "u".repeat(257);
    for (arguments, word) in [
        (vec!["request"], "--user"),
        (vec!["request", "--user", &long], "userId"),
        (vec!["request", "--user", "ann", "--metadata", "plan"], "KEY=VALUE"),
        (vec!["request", "--user", "a", "--metadata", "k=1", "--metadata", "k=2"], "twice"),
        (vec!["request", "--user", "ann", "--wait", "soon"], "--wait"),
        (vec!["request", "--file", "/no/such/file"], "--file"),
        (vec!["request", "--file", truncated.path()], "line 2"),
        (vec!["request", "--file", envelope.path()], "CloudEvent"),
        (vec!["request", "--file", empty.path()], "no request"),
        (vec!["request", "--file", empty.path(), "--user", "ann"], "--user"),
        (vec!["no-such-command"], "no-such-command"),
    ] {
        let output = run(&arguments, &nowhere).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    let output = run(&["request", "--user", "ann"], &nowhere).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot connect to RabbitMQ"), "{}", stderr(&output));
}

#[tokio::test]
async fn worker_makes_a_link_with_the_sandbox() {
    let settings = Settings::from([("HANDOFF_LOG".to_owned(), "info".to_owned())]);
    let arguments = [
        "sandbox",
        "--addr",
        "127.0.0.1:0",
        "--api-key",
        "ApiKey k",
        "--token-alphabet",
        "hostile",
        "--path-prefix",
        "/idv",
        "--latency",
        "1ms",
    ];
    let mut sandbox = command(&arguments, &settings)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut shown = BufReader::new(sandbox.stdout.take().unwrap());
    within_timeout("the address", shown.read_line(&mut line)).await.unwrap();
    let url = line.trim().strip_prefix("sandbox: listening on ").unwrap().to_owned();

    let mut env = TestEnv::start().await;
    env.set("IDV_URL", &url).set("IDV_API_KEY", "ApiKey k");
    let _worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    let event = env.rabbitmq.next_event().await;
    let link = event.data()["url"].as_str().unwrap().to_owned();
    assert!(link.starts_with(&format!("{url}/capture?url=")), "the path prefix is kept: {link}");
    let page = reqwest::get(&link).await.unwrap();
    assert_eq!(page.status(), 200);
    let stats = reqwest::get(format!("{url}/sandbox/stats")).await.unwrap().text().await.unwrap();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["sessionsByUser"], json!({ "ann": 1 }));

    crate::support::worker::signal(&sandbox, "TERM");
    assert!(within_timeout("the sandbox's exit", sandbox.wait()).await.unwrap().success());
    let mut rest = String::new();
    shown.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn help_lists_the_options_and_variables() {
    let none = Settings::new();
    for (command, words) in [
        ("run", &["HANDOFF_IDV_API_KEY_FILE", "HANDOFF_SHUTDOWN_GRACE", "[default: 25s]"][..]),
        ("demo", &["--serve", "HANDOFF_AMQP_URL"]),
        ("sandbox", &["--latency", "--failure-rate", "--rate-limit", "--token-alphabet"]),
        ("request", &["--user", "--file", "--wait", "--qr"]),
    ] {
        let output = run(&[command, "--help"], &none).await;
        assert!(output.status.success());
        for word in words.iter().chain(&["Example"]) {
            assert!(stdout(&output).contains(word), "{command}: {word}");
        }
    }
    assert_eq!(run(&[], &none).await.status.code(), Some(2));
}

#[tokio::test]
async fn invalid_sandbox_option_is_reported_by_name() {
    for (wrong, name) in [
        ("--latency=slow", "--latency"),
        ("--jitter=1", "--jitter"),
        ("--failure-rate=1.1", "--failure-rate"),
        ("--failure-rate=NaN", "--failure-rate"),
        ("--rate-limit=0/1m", "--rate-limit"),
        ("--rate-limit=1000", "--rate-limit"),
        ("--token-alphabet=greek", "--token-alphabet"),
        ("--path-prefix=a b", "--path-prefix"),
        ("--idempotency=maybe", "--idempotency"),
        ("--api-key=a\nb", "API key"),
    ] {
        // Options are checked before the address, which this machine does not have.
        let output = run(&["sandbox", "--addr=192.0.2.1:1", wrong], &Settings::new()).await;
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", stderr(&output));
        assert!(stderr(&output).contains(name), "{wrong}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}
