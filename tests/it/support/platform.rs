//! A platform that answers as a test wants it to, and remembers what it was asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

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
}

impl Call {
    pub fn is_token(&self) -> bool {
        self.path.ends_with("/api/device/ephemeral")
    }

    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no header {name}"));
        String::from_utf8(value.as_bytes().to_vec()).unwrap()
    }

    pub fn user(&self) -> &str {
        self.body["metadata"]["externalUserId"].as_str().unwrap()
    }
}

/// What is answered to a call.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub after: Duration,
}

impl Answer {
    pub fn json(value: &Value) -> Self {
        Self { status: 200, headers: vec![], body: value.to_string().into(), after: Duration::ZERO }
    }

    pub fn status(status: u16) -> Self {
        let body = br#"{"error":"b0dy-that-nobody-may-see"}"#.to_vec();
        Self { status, headers: vec![], body, after: Duration::ZERO }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
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
    script: Mutex<Box<Script>>,
}

/// A server on this machine. Ends when it is dropped.
pub struct Platform {
    pub url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Platform {
    /// One that always does well: distinct tokens, distinct sessions.
    pub async fn well() -> Self {
        Self::scripted(well).await
    }

    /// One that answers each call as the script says.
    pub async fn scripted(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let shared =
            Arc::new(Shared { calls: Mutex::default(), script: Mutex::new(Box::new(script)) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, shared, server }
    }

    /// From now on, answers differently.
    pub fn now(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    pub fn token_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::is_token).collect()
    }

    pub fn session_calls(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| !call.is_token()).collect()
    }

    /// Session calls by user.
    pub fn sessions_by_user(&self) -> HashMap<String, usize> {
        let mut by_user = HashMap::new();
        for call in self.session_calls() {
            *by_user.entry(call.user().to_owned()).or_default() += 1;
        }
        by_user
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The answer of a platform that does well.
pub fn well(call: &Call) -> Answer {
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
    };
    let answer = {
        let mut calls = shared.calls.lock().unwrap();
        call.nth = calls.iter().filter(|earlier| earlier.is_token() == call.is_token()).count();
        calls.push(call.clone());
        shared.script.lock().unwrap()(&call)
    };
    tokio::time::sleep(answer.after).await;
    let mut response = Response::builder().status(StatusCode::from_u16(answer.status).unwrap());
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).unwrap()
}
