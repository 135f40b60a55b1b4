//! A platform that answers as a test wants it to, and remembers what it was asked.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::within_timeout;

/// The API key that tests use. A distinctive one, so that a leak is found.
pub const API_KEY: &str = "ApiKey k3y-that-nobody-may-see";

/// One call as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Value,
    /// How many calls of the same kind came before it.
    pub nth: usize,
    /// When it came.
    pub at: Instant,
}

impl Call {
    pub fn is_token(&self) -> bool {
        self.path.ends_with("/api/device/ephemeral")
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

/// What is answered to a call.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub after: Duration,
    pub latch: Option<Latch>,
}

/// Something that answers can wait for.
#[derive(Clone, Debug)]
pub struct Latch(watch::Sender<bool>);

impl Latch {
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// From now on nothing waits for it any more.
    pub fn open(&self) {
        self.0.send_replace(true);
    }
}

impl Answer {
    pub fn json(value: &Value) -> Self {
        Self { body: value.to_string().into(), ..Self::status(200) }
    }

    pub fn status(status: u16) -> Self {
        let body = br#"{"error":"b0dy-that-nobody-may-see"}"#.to_vec();
        Self { status, headers: vec![], body, after: Duration::ZERO, latch: None }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Answers no sooner than that.
    pub fn held_by(mut self, latch: &Latch) -> Self {
        self.latch = Some(latch.clone());
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

struct Shared {
    calls: Mutex<Vec<Call>>,
    count: watch::Sender<usize>,
    script: Mutex<Box<Script>>,
}

/// A server on this machine. Ends when it is dropped.
pub struct Platform {
    pub url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Platform {
    /// One that answers each call as the script says.
    pub async fn scripted(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            count: watch::Sender::new(0),
            script: Mutex::new(Box::new(script)),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, shared, server }
    }

    /// From now on, answers differently.
    pub fn set_script(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// Waits until there have been so many calls.
    pub async fn wait_for_calls(&self, times: usize) {
        let mut count = self.shared.count.subscribe();
        within_timeout(&format!("{times} calls"), count.wait_for(|count| *count >= times))
            .await
            .unwrap();
    }

    pub fn token_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::is_token).collect()
    }

    pub fn session_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| !call.is_token()).collect()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The answer of a platform that does well.
pub fn success(call: &Call) -> Answer {
    Answer::json(&if call.is_token() {
        json!({ "authorization": format!("Token t0ken-that-nobody-may-see é/+=&%{}", call.nth) })
    } else {
        json!({ "id": format!("session-{}", call.nth), "status": 0 })
    })
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let mut call = Call {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap(),
        nth: 0,
        at: Instant::now(),
    };
    let answer = {
        let mut calls = shared.calls.lock().unwrap();
        call.nth = calls.iter().filter(|earlier| earlier.is_token() == call.is_token()).count();
        calls.push(call.clone());
        shared.count.send_replace(calls.len());
        shared.script.lock().unwrap()(&call)
    };
    tokio::time::sleep(answer.after).await;
    if let Some(Latch(latch)) = answer.latch {
        latch.subscribe().wait_for(|open| *open).await.unwrap();
    }
    let mut response = Response::builder().status(StatusCode::from_u16(answer.status).unwrap());
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).unwrap()
}

/// A platform that does well, but answers some calls no sooner than it is told.
pub fn hold_calls(which: fn(&Call) -> bool) -> (Latch, impl Fn(&Call) -> Answer + Send + Sync) {
    let latch = Latch::closed();
    let script = {
        let latch = latch.clone();
        move |call: &Call| match which(call) {
            true => success(call).held_by(&latch),
            false => success(call),
        }
    };
    (latch, script)
}
