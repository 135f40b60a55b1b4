//! A platform that answers as fast as it can, or after as long as it is told to: what is measured is
//! the worker. A process of its own, so that none of it is counted as the worker's.
//!
//! ```text
//! platform LATENCY-IN-MS        prints where it listens
//! GET /calls                    how many calls there were, and when the first came, in ns since 1970
//! GET /latency/MS               answers after so many ms from now on; forgets the calls
//! ```

use std::{
    convert::Infallible,
    error::Error,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, time::sleep};

struct State {
    latency: Duration,
    calls: u64,
    first: u128,
}

static STATE: Mutex<State> = Mutex::new(State { latency: Duration::ZERO, calls: 0, first: 0 });

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let latency = std::env::args().nth(1).unwrap_or_default();
    with_state(|state| state.latency = Duration::from_millis(latency.parse().unwrap_or(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async {
            let serving =
                http1::Builder::new().serve_connection(TokioIo::new(socket), service_fn(answer));
            // A worker that is killed breaks it off; nobody needs to know.
            let _ = serving.await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, answer) = match (request.method(), path.as_str()) {
        (&Method::POST, "/api/device/ephemeral") => {
            let call = called(request).await;
            let token = format!(r#"{{"authorization":"Token tr-{call:032x}"}}"#);
            (StatusCode::OK, token)
        }
        (&Method::POST, "/api/sessions") => {
            let call = called(request).await;
            (StatusCode::OK, format!(r#"{{"id":"{call:024x}","status":0}}"#))
        }
        (&Method::GET, "/calls") => {
            (StatusCode::OK, with_state(|state| format!("{} {}", state.calls, state.first)))
        }
        (&Method::GET, path) if path.starts_with("/latency/") => {
            let latency = path.trim_start_matches("/latency/").parse().unwrap_or(0);
            let latency = Duration::from_millis(latency);
            with_state(|state| *state = State { latency, calls: 0, first: 0 });
            (StatusCode::OK, String::new())
        }
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(answer)));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// Reads a call to its end, waits as long as it shall take, and returns its number.
async fn called(request: Request<Incoming>) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (number, latency) = with_state(|state| {
        if state.calls == 0 {
            state.first = now.as_nanos();
        }
        state.calls += 1;
        (state.calls, state.latency)
    });
    let _ = request.into_body().collect().await;
    if latency > Duration::ZERO {
        sleep(latency).await;
    }
    number
}

fn with_state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    change(&mut STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
