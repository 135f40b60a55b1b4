//! The webhook of `handoff sandbox`, with the real binary.

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver},
};

use crate::support::{
    Authority, TempFile, TlsProxy, Worker, log_text,
    tls::tls_url,
    within_timeout,
    worker::{Settings, command, run},
};

const SECRET: &str = "s3cret-must-not-leak";
const PATH: &str = "/hook?key=k3y-must-not-leak";

/// Starts a receiver of calls that answers 204. Returns its URL, and the calls.
async fn receiver() -> (String, UnboundedReceiver<(String, HeaderMap, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
    let (sender, calls) = mpsc::unbounded_channel();
    let take = move |request: Request<Body>| async move {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 1024).await.unwrap().to_vec();
        let called = format!("{} {}", parts.method, parts.uri);
        sender.send((called, parts.headers, String::from_utf8(body).unwrap())).unwrap();
        StatusCode::NO_CONTENT
    };
    let router = axum::Router::new().fallback(take);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, calls)
}

fn settings(webhook_url: &str, secret_file: &TempFile) -> Settings {
    [
        ("HANDOFF_LOG", "trace"),
        ("HANDOFF_SANDBOX_WEBHOOK_URL", webhook_url),
        ("HANDOFF_SANDBOX_WEBHOOK_SECRET_FILE", secret_file.path()),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Starts a sandbox, makes a session and finishes it. Returns the session's id and its token, too.
async fn finished_session(settings: &Settings) -> (Worker, String, String) {
    let sandbox = Worker::start_command(command(&["sandbox", "--addr", "127.0.0.1:0"], settings));
    let ready = sandbox.wait_for_log(log_text::SANDBOX_READY).await;
    let base = format!("http://{}", ready["addr"].as_str().unwrap());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let made = http
        .post(format!("{base}/api/v1/deeplink?workflowId=w"))
        .header("authorization", "sandbox-key")
        .body(json!({ "metadata": { "externalUserId": "ann" }, "ttl": 60 }).to_string())
        .header("content-type", "application/json");
    let made: Value =
        serde_json::from_str(&made.send().await.unwrap().text().await.unwrap()).unwrap();
    let link = url::Url::parse(made["url"].as_str().unwrap()).unwrap();
    let parameter = |name: &str| {
        let mut parameters = link.query_pairs();
        parameters.find(|(key, _)| key == name).unwrap().1.into_owned()
    };
    let page = http.post(link.clone()).body("end=finish").send().await.unwrap();
    assert_eq!(page.status(), 200);
    (sandbox, parameter("sessionId"), parameter("authorization"))
}

#[tokio::test]
async fn ended_session_is_reported_over_tls_and_no_secret_logged() {
    let authority = Authority::new();
    let (url, mut calls) = receiver().await;
    let proxy = TlsProxy::to(&url, &authority.issue(&["localhost"])).await;
    let secret = TempFile::new(&format!("{SECRET}\n"));
    let url = tls_url(&url, proxy.port()).replace("127.0.0.1", "localhost");
    let mut settings = settings(&url, &secret);
    settings.insert("SSL_CERT_FILE".into(), authority.certificate_file());
    let (sandbox, session, token) = finished_session(&settings).await;
    let (called, headers, body) = within_timeout("the call", calls.recv()).await.unwrap();
    assert_eq!(called, format!("POST {PATH}"));
    assert_eq!(body, format!(r#"{{"sessionId":"{session}"}}"#));
    assert_eq!(headers["x-webhook-secret"], SECRET);
    assert_eq!(headers["content-type"], "application/json");
    sandbox.wait_for_log(log_text::WEBHOOK_CALLED).await;
    let output = sandbox.stop_and_output().await;
    assert!(calls.try_recv().is_err(), "one call");
    for secret in ["must-not-leak", "/hook", &token, "ann"] {
        assert!(!output.contains(secret), "{secret}: {output}");
    }
}

#[tokio::test]
async fn receiver_with_an_untrusted_certificate_is_not_called() {
    let (url, mut calls) = receiver().await;
    let proxy = TlsProxy::to(&url, &Authority::new().issue(&["127.0.0.1"])).await;
    let secret = TempFile::new(SECRET);
    let settings = settings(&tls_url(&url, proxy.port()), &secret);
    let (sandbox, ..) = finished_session(&settings).await;
    let line = sandbox.wait_for_log(log_text::WEBHOOK_FAILED).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(log_text::UNTRUSTED_AUTHORITY), "{error}");
    let output = sandbox.stop_and_output().await;
    assert!(!output.contains("must-not-leak") && output.contains(log_text::WEBHOOK_DROPPED));
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn invalid_webhook_option_is_reported_without_its_value() {
    let file = TempFile::new("two words-must-not-leak");
    let [file, url] =
        [format!("--webhook-secret-file={}", file.path()), "--webhook-url=http://h".into()];
    for (arguments, words) in [
        (&["--webhook-url=http://must-not:leak@h/"][..], "user or password"),
        (&["--webhook-url=https://must-not-leak@h/"], "user or password"),
        (&["--webhook-url=must-not-leak"], "http or https URL"),
        (&["--webhook-url=ftp://must-not-leak/"], "http or https URL"),
        (&["--webhook-url="], "http or https URL"),
        (&[&*url, "--webhook-secret=must not-leak"], "printable ASCII"),
        (&[&*url, "--webhook-secret="], "printable ASCII"),
        (&[&*url, &*file], "printable ASCII"),
        (&[&*url, "--webhook-secret-file=/no/such"], "a file that does not exist"),
        (&[&*url, &*file, "--webhook-secret=must-not-leak"], "cannot be used with"),
        (&["--webhook-secret=must-not-leak"], "--webhook-url"),
        (&[&*url, "--webhook-secret", "-must-not-leak"], "argument"),
    ] {
        // This machine does not have the address.
        let arguments = [&["sandbox", "--addr=192.0.2.1:1"], arguments].concat();
        let output = run(&arguments, &Settings::new()).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert!(
            !stderr.contains("must-not") && !stderr.contains("leak"),
            "{arguments:?}: {stderr}"
        );
    }
}
