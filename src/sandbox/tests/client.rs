//! A minimal HTTP client.

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::sandbox::{Options, Sandbox, faults::Faults, record::CallRecord};

pub(super) const KEY: &str = Options::DEFAULT_API_KEY;

pub(super) async fn start(options: Options) -> Sandbox {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Sandbox::start(listener, options).unwrap()
}

pub(super) struct HttpResponse {
    /// `None`: the connection was closed without an answer.
    pub(super) status: Option<u16>,
    /// The status line and the headers, in lower case.
    pub(super) head: String,
    pub(super) body: String,
}

impl HttpResponse {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

pub(super) async fn send(
    sandbox: &Sandbox,
    method_and_path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> HttpResponse {
    let mut stream = TcpStream::connect(sandbox.addr()).await.unwrap();
    let mut request = format!("{method_and_path} HTTP/1.1\r\nhost: {}\r\n", sandbox.addr());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = body.len();
    request.push_str(&format!("content-length: {length}\r\nconnection: close\r\n\r\n{body}"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A connection that the sandbox closes may end in an error; only what arrived counts.
    let _ = stream.read_to_string(&mut answer).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    HttpResponse {
        status: head.split(' ').nth(1).map(|status| status.parse().unwrap()),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

pub(super) async fn get(sandbox: &Sandbox, path: &str) -> HttpResponse {
    send(sandbox, &format!("GET {path}"), &[], "").await
}

pub(super) async fn post_token(sandbox: &Sandbox) -> HttpResponse {
    let headers = [("authorization", KEY), ("content-type", "application/json")];
    send(sandbox, "POST /api/device/ephemeral", &headers, r#"{"ttl":3600}"#).await
}

pub(super) async fn post_session(
    sandbox: &Sandbox,
    token: &str,
    idempotency_key: &str,
) -> HttpResponse {
    let headers = [
        ("authorization", token),
        ("content-type", "application/json"),
        ("idempotency-key", idempotency_key),
        ("traceparent", "00-1-2-01"),
    ];
    let body = r#"{"metadata":{"plan":"gold","externalUserId":"ann"},"locale":"en"}"#;
    send(sandbox, "POST /api/sessions?workflowId=w%201", &headers, body).await
}

pub(super) async fn token(sandbox: &Sandbox) -> String {
    let response = post_token(sandbox).await;
    assert_eq!(response.status, Some(200));
    response.json()["authorization"].as_str().unwrap().to_owned()
}

pub(super) fn calls(sandbox: &Sandbox) -> Vec<CallRecord> {
    sandbox.app.backend().recorder.calls().into_iter().cloned().collect()
}

pub(super) fn set_faults(sandbox: &Sandbox, faults: Faults) {
    sandbox.app.backend().admission.faults = faults;
}
