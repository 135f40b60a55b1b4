//! A platform that remembers every session it made, and fails as the plan says.
//!
//! It carries out what it has begun, whether the caller still waits or not, and so leaves behind
//! sessions that nobody learnt of, as a real one does.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use crate::{
    book::{Book, Session},
    harm::Trouble,
};

pub struct Platform {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    book: Mutex<Book>,
    trouble: Mutex<Option<(Trouble, Instant)>>,
    heeds_keys: bool,
}

/// One call.
struct Call {
    is_token: bool,
    authorization: String,
    key: String,
    asked: Session,
}

/// The session of a call that is not over yet. When it goes, the call is over.
struct UnderWay {
    shared: Arc<Shared>,
    session: Option<usize>,
    answered: bool,
}

impl Platform {
    /// `heeds_keys`: a repeated session call answers the same session.
    pub async fn start(heeds_keys: bool) -> Self {
        let shared =
            Arc::new(Shared { book: Mutex::default(), trouble: Mutex::default(), heeds_keys });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, shared }
    }

    /// Fails from now on, for so long.
    pub fn fail(&self, trouble: Trouble, lasts: Duration) {
        *self.shared.trouble.lock().unwrap() = Some((trouble, Instant::now() + lasts));
    }

    pub fn sessions(&self) -> Vec<Session> {
        self.shared.book().sessions.clone()
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let Some(mut call) = read(request).await else { return answer(400, Body::empty()) };
    let trouble = *shared.trouble.lock().unwrap();
    let trouble =
        trouble.filter(|(_, until)| call.asked.begun < *until).map(|(trouble, _)| trouble);
    let trouble = trouble.filter(|trouble| call.is_token || *trouble != Trouble::KeyRefused);
    call.asked.trouble = trouble;
    let (before, after) = (rand::rng().random_range(5..150), rand::rng().random_range(5..150));
    let refuses = match trouble {
        // A proxy in front may say so although the work is done.
        Some(Trouble::Unavailable) => rand::rng().random_bool(0.75),
        Some(Trouble::TooManyRequests | Trouble::KeyRefused) => true,
        _ => false,
    };
    let mut under_way = UnderWay { shared: Arc::clone(&shared), session: None, answered: false };
    // On its own: that the caller goes does not stop it.
    let work = tokio::spawn(async move {
        sleep(Duration::from_millis(before)).await;
        if refuses { (None, None) } else { shared.carry_out(call) }
    });
    let (said, session) = work.await.unwrap();
    under_way.session = session;
    sleep(Duration::from_millis(after)).await;
    if trouble == Some(Trouble::TooSlow) {
        sleep(Duration::from_secs(5)).await;
    }
    under_way.answered = trouble.is_none();
    say(trouble, said)
}

/// The worker names itself by the path of its base URL, and the request by its metadata.
async fn read(request: Request) -> Option<Call> {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.ok()?;
    let body: Value = serde_json::from_slice(&body).ok()?;
    let text = |name: &str| body["metadata"][name].as_str().unwrap_or_default().to_owned();
    let header = |name| {
        let value = parts.headers.get(name).map(|value| value.as_bytes());
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let (worker, path) = parts.uri.path().strip_prefix('/')?.split_once('/')?;
    let workflow = parts.uri.query().and_then(|query| query.strip_prefix("workflowId="));
    let asked = Session {
        id: String::new(),
        pair: (text("externalUserId"), workflow.unwrap_or_default().to_owned()),
        request_id: text("request"),
        worker: worker.to_owned(),
        begun,
        made: begun,
        over: None,
        answered: false,
        trouble: None,
    };
    Some(Call {
        is_token: path == "api/device/ephemeral",
        authorization: header("authorization"),
        key: header("idempotency-key"),
        asked,
    })
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// What is to be said when all is well, and the session it is about.
    fn carry_out(
        &self,
        Call { is_token, authorization, key, asked }: Call,
    ) -> (Option<Value>, Option<usize>) {
        let mut book = self.book();
        if is_token {
            let token = book.issue(asked.worker, asked.begun);
            return (Some(json!({ "authorization": token })), None);
        }
        let asked = Session { made: Instant::now(), ..asked };
        let session = book.open(&authorization, self.heeds_keys.then_some(key), asked);
        (session.map(|number| json!({ "id": book.sessions[number].id })), session)
    }
}

fn say(trouble: Option<Trouble>, said: Option<Value>) -> Response {
    match (trouble, said) {
        (None | Some(Trouble::TooSlow), Some(said)) => answer(200, Body::from(said.to_string())),
        (None | Some(Trouble::TooSlow), None) => answer(401, Body::empty()),
        (Some(Trouble::Unavailable), _) => answer(503, Body::empty()),
        (Some(Trouble::KeyRefused), _) => answer(401, Body::empty()),
        (Some(Trouble::BrokenJson), _) => answer(200, Body::from(r#"{"id":"#)),
        (Some(Trouble::TooManyRequests), _) => {
            let mut answer = answer(429, Body::empty());
            answer.headers_mut().insert("retry-after", "2".parse().unwrap());
            answer
        }
        (Some(Trouble::CutOff), _) => {
            let broken = Err::<String, _>(std::io::Error::other("cut off"));
            answer(200, Body::from_stream(futures_util::stream::once(async { broken })))
        }
    }
}

fn answer(status: u16, body: Body) -> Response {
    Response::builder().status(status).body(body).unwrap()
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(session) = self.session {
            self.shared.book().over(session, self.answered);
        }
    }
}
