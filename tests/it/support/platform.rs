//! A platform that answers as a test scripts it, and records the calls.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use handoff::sandbox::{ApiCall, Endpoint, Options, Sandbox};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use super::wait::within_timeout;

/// The API key that tests use. A distinctive one, so that a leak is found.
pub const API_KEY: &str = "ApiKey k3y-must-not-leak";

/// A call to the platform.
#[derive(Clone, Debug)]
pub struct Call {
    pub endpoint: Endpoint,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Value,
    /// The number of earlier calls to the same endpoint.
    pub nth: usize,
    /// When the call arrived.
    pub at: Instant,
}

impl Call {
    pub fn is_token(&self) -> bool {
        self.endpoint == Endpoint::Token
    }

    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no header {name}"));
        String::from_utf8(value.as_bytes().to_vec()).unwrap()
    }

    /// Whether this is a session call for this user.
    pub fn user_is(&self, user: &str) -> bool {
        self.body["metadata"]["externalUserId"] == user
    }
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub latency: Duration,
    /// What the answer waits for after its latency.
    pub latch: Option<Latch>,
}

/// Holds answers back until it is opened.
#[derive(Clone, Debug)]
pub struct Latch(watch::Sender<bool>);

impl Latch {
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Releases all answers, and holds none from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

impl Answer {
    pub fn json(value: &Value) -> Self {
        Self { body: value.to_string().into(), ..Self::status(200) }
    }

    pub fn status(status: u16) -> Self {
        let body = br#"{"error":"b0dy-must-not-leak"}"#.to_vec();
        Self { status, headers: vec![], body, latency: Duration::ZERO, latch: None }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn held_by(mut self, latch: &Latch) -> Self {
        self.latch = Some(latch.clone());
        self
    }

    pub fn after(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    async fn send(self) -> Response {
        tokio::time::sleep(self.latency).await;
        if let Some(latch) = self.latch {
            latch.opened().await;
        }
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Body::from(self.body)).unwrap()
    }
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

struct Recorder {
    calls: Mutex<Vec<Call>>,
    count: watch::Sender<usize>,
    script: Mutex<Box<Script>>,
}

impl Recorder {
    fn answer(&self, call: &ApiCall) -> Answer {
        let mut calls = self.calls.lock().unwrap();
        let call = Call {
            endpoint: call.endpoint(),
            path: call.path().to_owned(),
            query: call.query().map(str::to_owned),
            headers: call.headers().clone(),
            body: serde_json::from_slice(call.body()).unwrap(),
            nth: calls.iter().filter(|earlier| earlier.endpoint == call.endpoint()).count(),
            at: call.arrived_at(),
        };
        calls.push(call.clone());
        self.count.send_replace(calls.len());
        self.script.lock().unwrap()(&call)
    }
}

/// A sandbox whose answers a script decides. It stops when it is dropped.
pub struct Platform {
    pub url: String,
    recorder: Arc<Recorder>,
    _sandbox: Sandbox,
}

impl Platform {
    /// Answers each call as the script says.
    pub async fn scripted(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let recorder = Arc::new(Recorder {
            calls: Mutex::default(),
            count: watch::Sender::new(0),
            script: Mutex::new(Box::new(script)),
        });
        let hook = {
            let recorder = Arc::clone(&recorder);
            move |call: ApiCall, _| recorder.answer(&call).send()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start_with_hook(listener, Options::default(), hook).unwrap();
        Self { url: sandbox.url(), recorder, _sandbox: sandbox }
    }

    /// Replaces the script for all later calls.
    pub fn set_script(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *self.recorder.script.lock().unwrap() = Box::new(script);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.recorder.calls.lock().unwrap().clone()
    }

    /// Waits until there have been `count` calls since the start.
    pub async fn wait_for_calls(&self, count: usize) {
        let mut calls = self.recorder.count.subscribe();
        within_timeout(&format!("{count} calls"), calls.wait_for(|calls| *calls >= count))
            .await
            .unwrap();
    }

    pub fn token_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::is_token).collect()
    }

    pub fn session_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.endpoint == Endpoint::Session).collect()
    }

    pub fn deeplink_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.endpoint == Endpoint::Deeplink).collect()
    }
}

/// The answer of a healthy platform.
pub fn success(call: &Call) -> Answer {
    Answer::json(&match call.endpoint {
        Endpoint::Token => {
            let token = format!("Token t0ken-must-not-leak é/+=&%{}", call.nth);
            json!({ "authorization": token })
        }
        Endpoint::Session => json!({ "id": format!("session-{}", call.nth), "status": 0 }),
        Endpoint::Deeplink => json!({
            "url": deeplink(call.nth),
            "createdAt": "2026-03-02T09:15:04.611Z",
            "expiresAt": "2999-01-01T00:00:00.000Z",
            "workflowIds": ["w"],
        }),
    })
}

/// The link of the nth deeplink call.
pub fn deeplink(nth: usize) -> String {
    format!(
        "http://127.0.0.1:1/eu/mobile?authorization=Token%20t0ken-must-not-leak+%C3%A9{nth}&sessionId=session-{nth}"
    )
}

/// A script of successful answers, some of which wait for the latch.
pub fn hold_calls(held: fn(&Call) -> bool) -> (Latch, impl Fn(&Call) -> Answer + Send + Sync) {
    let latch = Latch::closed();
    let script = {
        let latch = latch.clone();
        move |call: &Call| {
            let answer = success(call);
            if held(call) { answer.held_by(&latch) } else { answer }
        }
    };
    (latch, script)
}
