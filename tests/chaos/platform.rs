//! A sandbox that fails as planned and records every session.
//!
//! It completes work that it has started, whether or not the caller still waits. Like the real
//! platform, it thereby makes sessions that no caller learns of.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    response::Response,
};
use handoff::sandbox::{ApiCall, Endpoint, Options, Sandbox, Simulation};
use rand::RngExt;
use serde_json::Value;
use tokio::{net::TcpListener, time::sleep};

use crate::{
    faults::PlatformFault,
    ledger::{Ledger, Session},
};

pub struct Platform {
    pub url: String,
    recorder: Arc<Recorder>,
    _sandbox: Sandbox,
}

#[derive(Default)]
struct Recorder {
    ledger: Mutex<Ledger>,
    /// The fault in effect, and its end.
    fault: Mutex<Option<(PlatformFault, Instant)>>,
}

impl Platform {
    /// With `idempotency`, a repeated session call returns the same session.
    pub async fn start(idempotency: bool) -> Self {
        let recorder = Arc::new(Recorder::default());
        let hook = {
            let recorder = Arc::clone(&recorder);
            move |call, simulation| answer(Arc::clone(&recorder), call, simulation)
        };
        let options = Options { honour_idempotency_key: idempotency, ..Options::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start_with_hook(listener, options, hook).unwrap();
        Self { url: sandbox.url(), recorder, _sandbox: sandbox }
    }

    /// Starts a fault, which ends after this duration.
    pub fn fail(&self, fault: PlatformFault, duration: Duration) {
        *self.recorder.fault.lock().unwrap() = Some((fault, Instant::now() + duration));
    }

    pub fn sessions(&self) -> Vec<Session> {
        self.recorder.ledger().sessions().to_vec()
    }
}

async fn answer(recorder: Arc<Recorder>, call: ApiCall, simulation: Simulation) -> Response {
    let fault = recorder.fault_of(&call);
    let latency_before = random_latency();
    let latency_after = random_latency();
    let refused = match fault {
        // A proxy in front of the platform may answer 503 although the call succeeded.
        Some(PlatformFault::Unavailable) => rand::rng().random_bool(0.75),
        Some(PlatformFault::TooManyRequests | PlatformFault::KeyRefused) => true,
        _ => false,
    };
    let mut guard =
        CallGuard { recorder: Arc::clone(&recorder), session_id: None, answered: false };
    // A task of its own completes the work even if the caller closes the connection.
    let work = tokio::spawn(async move {
        sleep(latency_before).await;
        if refused {
            return (Response::default(), None);
        }
        let (parts, body) = simulation.answer(&call).await.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let session_id = recorder.record(&call, &body, fault);
        (Response::from_parts(parts, Body::from(body)), session_id)
    });
    let normal_answer;
    (normal_answer, guard.session_id) = work.await.unwrap();
    sleep(latency_after).await;
    if fault == Some(PlatformFault::TooSlow) {
        sleep(Duration::from_secs(5)).await;
    }
    guard.answered = fault.is_none();
    match fault {
        None | Some(PlatformFault::TooSlow) => normal_answer,
        Some(fault) => fault_answer(fault),
    }
}

impl Recorder {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// The fault in effect when the call arrived.
    fn fault_of(&self, call: &ApiCall) -> Option<PlatformFault> {
        let (fault, end) = (*self.fault.lock().unwrap())?;
        let applies = call.endpoint() == Endpoint::Token || fault != PlatformFault::KeyRefused;
        (applies && call.arrived_at() < end).then_some(fault)
    }

    /// Records what a call made. Returns the id of a session.
    fn record(
        &self,
        call: &ApiCall,
        answer: &[u8],
        fault: Option<PlatformFault>,
    ) -> Option<String> {
        let answer: Value = serde_json::from_slice(answer).unwrap();
        let worker = worker_name(call);
        if call.endpoint() == Endpoint::Token {
            let token = answer["authorization"].as_str()?.to_owned();
            self.ledger().add_token(token, worker, call.arrived_at());
            return None;
        }
        let id = answer["id"].as_str()?.to_owned();
        let body: Value = serde_json::from_slice(call.body()).unwrap();
        let metadata = |name: &str| body["metadata"][name].as_str().unwrap().to_owned();
        let workflow = call.query().unwrap().strip_prefix("workflowId=").unwrap().to_owned();
        let session = Session {
            id: id.clone(),
            pair: (metadata("externalUserId"), workflow),
            request_id: metadata("request"),
            worker,
            started: call.arrived_at(),
            made: Instant::now(),
            ended: None,
            answered: false,
            fault,
        };
        let token = call.headers()["authorization"].to_str().unwrap();
        self.ledger().add_session(token, session);
        Some(id)
    }
}

/// Each worker's base URL ends in its name.
fn worker_name(call: &ApiCall) -> String {
    let (name, _) = call.path().trim_start_matches('/').split_once('/').unwrap();
    name.to_owned()
}

fn random_latency() -> Duration {
    Duration::from_millis(rand::rng().random_range(5..150))
}

fn fault_answer(fault: PlatformFault) -> Response {
    let response = |status, body| Response::builder().status(status).body(body).unwrap();
    match fault {
        PlatformFault::Unavailable | PlatformFault::TooSlow => response(503, Body::empty()),
        PlatformFault::KeyRefused => response(401, Body::empty()),
        PlatformFault::BrokenJson => response(200, Body::from(r#"{"id":"#)),
        PlatformFault::TooManyRequests => {
            let mut response = response(429, Body::empty());
            response.headers_mut().insert("retry-after", "2".parse().unwrap());
            response
        }
        PlatformFault::TruncatedBody => {
            let error = Err::<String, _>(std::io::Error::other("truncated"));
            response(200, Body::from_stream(futures_util::stream::once(async { error })))
        }
    }
}

/// Records the end of a call when it is dropped: after the answer, or when the caller has closed
/// the connection.
struct CallGuard {
    recorder: Arc<Recorder>,
    session_id: Option<String>,
    answered: bool,
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        if let Some(id) = &self.session_id {
            self.recorder.ledger().end_call(id, self.answered);
        }
    }
}
