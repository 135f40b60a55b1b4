//! Commands whose stdout or stderr is closed or full, and hostile text on a terminal.

use std::{
    fs::OpenOptions,
    process::{Output, Stdio},
};

use lapin::BasicProperties;
use serde_json::json;

use crate::support::{
    Message, TempFile, TestEnv,
    rabbitmq::{field_table, long_string},
    required_env, wait_until, within_timeout,
    worker::{Settings, command, signal},
};

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A file on a full disk.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// Runs a command, and returns its status, stdout and stderr, empty where they are not captured.
async fn run(
    arguments: &[&str],
    settings: &Settings,
    stdout: Stdio,
    stderr: Stdio,
) -> (Option<i32>, String, String) {
    let mut command = command(arguments, settings);
    let command = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let output = within_timeout("its exit", command.wait_with_output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The settings of a command that has only a RabbitMQ.
fn client_settings(env: &TestEnv) -> Settings {
    env.only(&["AMQP_URL", "QUEUE", "REQUEST_EXCHANGE", "EVENT_EXCHANGE", "RETRY_DELAYS"])
}

fn dead_letter(id: &str, detail: &str, body: &[u8]) -> Message {
    let headers = field_table(&[
        ("x-handoff-request-id", long_string(id)),
        ("x-handoff-reason", long_string(detail)),
        ("x-handoff-detail", long_string(detail)),
        ("mine", long_string(detail)),
    ]);
    let properties = BasicProperties::default().with_headers(headers).with_type(detail.into());
    Message { routing_key: String::new(), properties, body: body.to_vec() }
}

const PRINTING: [&[&str]; 9] = [
    &["--help"],
    &["--version"],
    &["run", "--help"],
    &["dead-letters", "replay", "--help"],
    &["schema"],
    &["completions", "bash"],
    &["completions", "fish"],
    &["man"],
    &["man", "run"],
];

#[tokio::test]
async fn closed_stdout_ends_a_command_quietly() {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    for n in 0..3 {
        let letter = dead_letter(&format!("r-{n}"), "why", b"{}");
        env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    }
    let client = client_settings(&env);
    let lists = [&["dead-letters", "list"][..], &["dead-letters", "show"]];
    for arguments in PRINTING.iter().copied().chain(lists) {
        let ended = run(arguments, &client, closed(), Stdio::piped()).await;
        assert_eq!(ended, (Some(0), String::new(), String::new()), "{arguments:?}");
    }
    wait_until("all are back", async || env.dead_letters().await == 3).await;
    // The status of doctor is that of its checks.
    let (status, _, stderr) = run(&["doctor"], &env.settings, closed(), Stdio::piped()).await;
    let (unclosed, _, findings) =
        run(&["doctor"], &env.settings, Stdio::null(), Stdio::piped()).await;
    assert_eq!((status, stderr), (unclosed, findings));
}

#[tokio::test]
async fn full_stdout_is_one_error_line() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    env.rabbitmq.publish_to_queue(&env.dead_queue(), &dead_letter("r", "why", b"{}")).await;
    let client = client_settings(&env);
    let others = [
        &["dead-letters", "list"][..],
        &["dead-letters", "show"],
        &["request", "--user", "ann"],
        &["sandbox", "--addr", "127.0.0.1:0"],
    ];
    for arguments in PRINTING.iter().copied().chain(others) {
        let (status, _, stderr) = run(arguments, &client, full(), Stdio::piped()).await;
        let line = "handoff: cannot write to stdout: No space left on device (os error 28)\n";
        assert_eq!(stderr, line, "{arguments:?}");
        assert_eq!(status, Some(1), "{arguments:?}");
    }
    let (status, _, stderr) = run(&["doctor"], &env.settings, full(), Stdio::piped()).await;
    assert!(stderr.contains("cannot write to stdout"), "{stderr}");
    assert_eq!(status, Some(1));
}

#[tokio::test]
async fn requests_are_all_sent_although_stdout_is_closed() {
    let env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let lines: String = (0..200).map(|n| format!("{{\"userId\":\"user-{n}\"}}\r\n")).collect();
    let file = TempFile::new(&format!("\u{feff}{lines}"));
    let arguments = ["request", "--file", file.path()];
    let ended = run(&arguments, &client_settings(&env), closed(), Stdio::piped()).await;
    assert_eq!(ended, (Some(0), String::new(), String::new()));
    worker.wait_for_finished(200).await;
}

#[tokio::test]
async fn demo_ends_quietly_when_stdout_is_closed() {
    let env = TestEnv::builder().without_event_queue().start().await;
    let mut settings = client_settings(&env);
    settings.insert("HANDOFF_REDIS_URL".into(), required_env("HANDOFF_REDIS_URL"));
    settings.insert("HANDOFF_KEY_PREFIX".into(), env.name.clone());
    for arguments in [&["demo"][..], &["demo", "--serve"]] {
        let ended = run(arguments, &settings, closed(), Stdio::piped()).await;
        assert_eq!(ended, (Some(0), String::new(), String::new()), "{arguments:?}");
    }
}

#[tokio::test]
async fn broken_stderr_changes_no_status() {
    let env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let client = client_settings(&env);
    let drop_all = ["dead-letters", "drop", "--all"];
    let cases = [
        (&["no-such-command"][..], Some(2)),
        (&["run", "--no-such-flag"], Some(2)),
        (&[], Some(2)),
        (&["request", "--user", ""], Some(2)),
        (&["dead-letters", "show", "no-such-id"], Some(1)),
        (&["request", "--user", "ann", "--qr"], Some(0)),
        (&drop_all, Some(0)),
    ];
    for (arguments, expected) in cases {
        for stderr in [closed(), full()] {
            let (status, ..) = run(arguments, &client, Stdio::null(), stderr).await;
            assert_eq!(status, expected, "{arguments:?}");
        }
        // Closed by the shell: the standard library opens /dev/null in its place.
        let line = "exec \"$0\" \"$@\" <&- >&- 2>&-";
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", line, env!("CARGO_BIN_EXE_handoff")]).args(arguments).envs(&client);
        let status = within_timeout("its exit", shell.status()).await.unwrap();
        assert_eq!(status.code(), expected, "{arguments:?}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn worker_serves_although_stderr_is_broken() {
    let mut env = TestEnv::start().await;
    for (n, stderr) in [closed(), full()].into_iter().enumerate() {
        let mut worker =
            command(&["run"], &env.settings).stdout(closed()).stderr(stderr).spawn().unwrap();
        // The exchange exists once a worker has started.
        let request = json!({ "userId": "ann" });
        let id = format!("r-{n}");
        wait_until("the request is taken", async || {
            env.rabbitmq.try_publish_request(&id, request.clone()).await
        })
        .await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
        signal(&worker, "TERM");
        let status = within_timeout("the worker's exit", worker.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

/// Controls of C0 and C1, DEL, an override, an isolate, a zero-width space and a line separator.
const HOSTILE: &str =
    "a\u{1b}[31m\u{7}\u{7f}\u{9b}2J\u{85}\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}b";

/// Runs a command on a terminal, and returns its output.
async fn on_terminal(arguments: &str, settings: &Settings) -> String {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_handoff"));
    let mut script = tokio::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("NO_COLOR", "1");
    let output = script.envs(settings).stdin(Stdio::null()).output();
    let Output { stdout, .. } = within_timeout("its exit", output).await.unwrap();
    String::from_utf8(stdout).unwrap()
}

fn assert_harmless(text: &str) {
    let is_hostile = |c: char| {
        (c.is_control() && !matches!(c, '\r' | '\n' | '\t'))
            || "\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}".contains(c)
    };
    assert!(!text.contains(is_hostile), "{text:?}");
}

#[tokio::test]
async fn hostile_dead_letter_cannot_control_the_terminal() {
    let env = TestEnv::start().await;
    env.declare_topology().await;
    let bodies = [json!({ "userId": HOSTILE, HOSTILE: [HOSTILE] }).to_string(), HOSTILE.to_owned()];
    for (n, body) in bodies.iter().enumerate() {
        let letter = dead_letter(&format!("{n}{HOSTILE}"), HOSTILE, body.as_bytes());
        env.rabbitmq.publish_to_queue(&env.dead_queue(), &letter).await;
    }
    let client = client_settings(&env);
    for action in ["show", "list", "replay --all --dry-run", "drop --all --dry-run"] {
        let shown = on_terminal(&format!("dead-letters {action}"), &client).await;
        assert_harmless(&shown);
        wait_until("all are back", async || env.dead_letters().await == 2).await;
        let escaped =
            if action == "show" { "\\u009b2J\\u0085\\u202e" } else { "\\u{9b}2J\\u{85}\\u{202e}" };
        assert!(shown.contains(escaped), "{action}: {shown}");
    }
    // Without a terminal, JSON has the same values.
    let shown = run(&["dead-letters", "show"], &client, Stdio::piped(), Stdio::piped()).await.1;
    let first: serde_json::Value = serde_json::from_str(shown.lines().next().unwrap()).unwrap();
    assert_eq!(first["detail"], HOSTILE);
}

#[tokio::test]
async fn hostile_event_or_argument_cannot_control_the_terminal() {
    let env = TestEnv::start().await;
    let _worker = env.start_worker().await;
    let client = client_settings(&env);
    let printable = "a\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}b";
    let shown = on_terminal(&format!("request --user '{printable}' --qr"), &client).await;
    assert_harmless(&shown);
    assert!(shown.contains(r#""userId":"a\u202e\u2066\u200b\u2028\ufeffb""#), "{shown}");
    // clap repeats these arguments in its errors.
    for arguments in [
        "request --user ann --wait 'ARG'",
        "request --user ann --metadata 'ARG'",
        "'ARG'",
        "completions 'ARG'",
        "man 'ARG'",
        "run '--ARG'",
        "sandbox --addr 'ARG'",
        "dead-letters replay --rate 'ARG' --all",
        "request --file '/ARG'",
        "dead-letters show 'ARG'",
    ] {
        let shown = on_terminal(&arguments.replace("ARG", HOSTILE), &client).await;
        assert_harmless(&shown);
        let is_shown = shown.contains("\\u{9b}2J") || arguments.contains("--file");
        assert!(is_shown, "{arguments}: {shown}");
    }
}
