//! The webhook, with a receiver on a real socket.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client::{KEY, get, post_session, send, start, token},
    *,
};

const SECRET: &str = "s3cret-~!";

/// Answers each call, once it is permitted, with the next of some heads, and the last of them from then on.
struct Receiver {
    addr: SocketAddr,
    calls: mpsc::UnboundedReceiver<(String, String)>,
    permits: Arc<Semaphore>,
    _server: AbortOnDropHandle<()>,
}

impl Receiver {
    async fn start(heads: &[&str]) -> Self {
        Self::listen("127.0.0.1:0".parse().unwrap(), heads).await
    }

    async fn listen(addr: SocketAddr, heads: &[&str]) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let given = Arc::clone(&permits);
        let heads: Vec<_> = heads.iter().rev().map(|&head| head.to_owned()).collect();
        let heads = Arc::new(Mutex::new(heads));
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, given, heads) = (sender.clone(), given.clone(), heads.clone());
                tokio::spawn(answer(stream, sender, given, heads));
            }
        });
        Self { addr, calls, permits, _server: AbortOnDropHandle::new(server) }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?key=1", self.addr)
    }

    /// The head and the body of the next call.
    async fn next(&mut self) -> (String, String) {
        timeout(Duration::from_secs(30), self.calls.recv()).await.expect("a call").unwrap()
    }

    /// The session of the next call.
    async fn next_session(&mut self) -> String {
        let body: Value = serde_json::from_str(&self.next().await.1).unwrap();
        body["sessionId"].as_str().unwrap().to_owned()
    }
}

async fn answer(
    mut stream: TcpStream,
    calls: mpsc::UnboundedSender<(String, String)>,
    permits: Arc<Semaphore>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    let mut call = String::new();
    let mut buffer = [0; 4096];
    while !call.ends_with('}') {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => call.push_str(str::from_utf8(&buffer[..n]).unwrap()),
        }
    }
    let (head, body) = call.split_once("\r\n\r\n").unwrap();
    let _ = calls.send((head.to_owned(), body.to_owned()));
    let Ok(_permit) = permits.acquire().await else { return };
    let head = {
        let mut heads = heads.lock().unwrap();
        if heads.len() > 1 { heads.pop().unwrap() } else { heads[0].clone() }
    };
    let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

async fn start_with(webhook: Webhook) -> Sandbox {
    start(Options { webhook: Some(webhook), ..Options::default() }).await
}

/// Makes a session, and returns its id and the path of its page.
async fn session(sandbox: &Sandbox) -> (String, String) {
    let token = token(sandbox).await;
    let id = post_session(sandbox, &token, "k").await.json()["id"].as_str().unwrap().to_owned();
    let page = format!("/mobile?authorization={token}&sessionId={id}");
    (id, page)
}

async fn press(sandbox: &Sandbox, page: &str, end: &str) -> Option<u16> {
    send(sandbox, &format!("POST {page}"), &[], &format!("end={end}")).await.status
}

#[tokio::test]
async fn ended_session_is_reported_once_with_the_secret() {
    let mut receiver = Receiver::start(&["204 No Content"]).await;
    let sandbox = start_with(Webhook::new(&receiver.url(), Some(SECRET)).unwrap()).await;
    for end in ["finish", "close"] {
        let (id, page) = session(&sandbox).await;
        assert_eq!(press(&sandbox, &page, "other").await, Some(400));
        assert_eq!(press(&sandbox, &page, end).await, Some(200));
        let (head, body) = receiver.next().await;
        assert_eq!(body, format!(r#"{{"sessionId":"{id}"}}"#));
        let lines: BTreeSet<_> = head.lines().collect();
        let addr = receiver.addr;
        for line in [
            "POST /hook?key=1 HTTP/1.1",
            "content-type: application/json",
            &format!("x-webhook-secret: {SECRET}"),
            &format!("content-length: {}", body.len()),
            &format!("host: {addr}"),
        ] {
            assert!(lines.contains(line), "{line} in {head}");
        }
        assert_eq!(press(&sandbox, &page, "finish").await, Some(410));
    }
    let (open, _) = session(&sandbox).await;
    sandbox.expire_tokens();
    assert_eq!(receiver.next_session().await, open, "the sessions above have been reported");
    // Waits for calls in flight.
    sandbox.stop().await;
    assert!(receiver.calls.try_recv().is_err(), "one call for each session");
    let CallCounts { total, closed, by_status } = sandbox.stats().webhook_calls;
    assert_eq!((total, closed, by_status.get(&204)), (3, 0, Some(&3)));
}

#[tokio::test]
async fn call_without_a_secret_has_no_secret_header() {
    let mut receiver = Receiver::start(&["200 OK"]).await;
    let sandbox = start_with(Webhook::new(&receiver.url(), None).unwrap()).await;
    let (_, page) = session(&sandbox).await;
    press(&sandbox, &page, "finish").await;
    let (head, _) = receiver.next().await;
    assert!(!head.contains("secret") && !head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn end_of_a_lifetime_is_reported() {
    let mut receiver = Receiver::start(&["204 No Content"]).await;
    let webhook = Some(Webhook::new(&receiver.url(), Some(SECRET)).unwrap());
    let session_lifetime = Some(Duration::from_millis(300));
    let sandbox = start(Options { webhook, session_lifetime, ..Options::default() }).await;
    let began = Instant::now();
    let (id, page) = session(&sandbox).await;
    assert_eq!(receiver.next_session().await, id);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(get(&sandbox, &page).await.status, Some(410));

    // Of the one-call flow: its session ends with its token.
    let webhook = Some(Webhook::new(&receiver.url(), Some(SECRET)).unwrap());
    let sandbox = start(Options { webhook, ..Options::default() }).await;
    let headers = [("authorization", KEY), ("content-type", "application/json")];
    let body = json!({ "metadata": { "externalUserId": "ann" }, "ttl": 1 }).to_string();
    let made = send(&sandbox, "POST /api/v1/deeplink?workflowId=w", &headers, &body).await.json();
    let url = made["url"].as_str().unwrap();
    assert_eq!(receiver.next_session().await, url.split_once("sessionId=").unwrap().1);
}

#[tokio::test]
async fn repeated_call_for_a_session_does_not_reopen_it() {
    let mut receiver = Receiver::start(&["204 No Content"]).await;
    let webhook = Some(Webhook::new(&receiver.url(), Some(SECRET)).unwrap());
    let options = Options { webhook, honour_idempotency_key: true, ..Options::default() };
    let sandbox = start(options).await;
    let token = token(&sandbox).await;
    let call = async || post_session(&sandbox, &token, "k").await.json()["id"].clone();
    let id = call().await;
    let page = format!("/mobile?authorization={token}&sessionId={}", id.as_str().unwrap());
    press(&sandbox, &page, "close").await;
    assert_eq!(receiver.next_session().await, id);
    assert_eq!(call().await, id);
    sandbox.expire_tokens();
    let (_, page) = session(&sandbox).await;
    press(&sandbox, &page, "close").await;
    assert_ne!(receiver.next_session().await, id);
    sandbox.stop().await;
    assert!(receiver.calls.try_recv().is_err());
}

#[tokio::test]
async fn receiver_that_comes_back_is_called() {
    let mut receiver = Receiver::start(&["204 No Content"]).await;
    let sandbox = start_with(Webhook::new(&receiver.url(), Some(SECRET)).unwrap()).await;
    let addr = receiver.addr;
    drop(receiver);
    let (id, page) = session(&sandbox).await;
    assert_eq!(press(&sandbox, &page, "finish").await, Some(200));
    while sandbox.stats().webhook_calls.closed == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    receiver = Receiver::listen(addr, &["204 No Content"]).await;
    assert_eq!(receiver.next_session().await, id);
    sandbox.stop().await;
    assert!(receiver.calls.try_recv().is_err());
}

#[tokio::test]
async fn refused_call_is_repeated_and_a_redirect_not_followed() {
    let mut other = Receiver::start(&["204 No Content"]).await;
    let redirect = format!("307 Temporary Redirect\r\nlocation: {}", other.url());
    let heads = [&redirect, "503 Service Unavailable", "202 Accepted"];
    let mut receiver = Receiver::start(&heads).await;
    let sandbox = start_with(Webhook::new(&receiver.url(), Some(SECRET)).unwrap()).await;
    let (id, page) = session(&sandbox).await;
    press(&sandbox, &page, "finish").await;
    for _ in 0..3 {
        assert_eq!(receiver.next_session().await, id);
    }
    sandbox.stop().await;
    assert!(receiver.calls.try_recv().is_err() && other.calls.try_recv().is_err());
    let by_status = sandbox.stats().webhook_calls.by_status;
    assert_eq!(by_status.into_iter().collect::<Vec<_>>(), [(202, 1), (307, 1), (503, 1)]);
}

#[tokio::test]
async fn slow_receiver_delays_no_page() {
    const SESSIONS: usize = 20;
    let mut receiver = Receiver::start(&["204 No Content"]).await;
    receiver.permits.forget_permits(Semaphore::MAX_PERMITS);
    let sandbox = start_with(Webhook::new(&receiver.url(), Some(SECRET)).unwrap()).await;
    let mut ids = BTreeSet::new();
    let began = Instant::now();
    for _ in 0..SESSIONS {
        let (id, page) = session(&sandbox).await;
        assert_eq!(press(&sandbox, &page, "finish").await, Some(200));
        assert_eq!(get(&sandbox, &page).await.status, Some(410));
        ids.insert(id);
    }
    // A call may take 10 s.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut called = BTreeSet::new();
    for n in 0..SESSIONS {
        // Eight calls are in flight; each that is answered makes room for another.
        if n >= 8 {
            receiver.permits.add_permits(1);
        } else if n == 7 {
            assert_eq!(sandbox.stats().webhook_calls.total, 0);
        }
        called.insert(receiver.next_session().await);
        if n == 7 {
            assert!(receiver.calls.try_recv().is_err(), "no ninth call");
        }
    }
    receiver.permits.add_permits(SESSIONS);
    assert_eq!(called, ids);
    sandbox.stop().await;
    assert_eq!(sandbox.stats().webhook_calls.by_status[&204], SESSIONS as u64);
}

#[tokio::test(start_paused = true)]
async fn receiver_that_stays_down_is_given_up() {
    let receiver = Receiver::start(&["204 No Content"]).await;
    let sandbox = start_with(Webhook::new(&receiver.url(), Some(SECRET)).unwrap()).await;
    drop(receiver);
    let (_, page) = session(&sandbox).await;
    let began = tokio::time::Instant::now();
    press(&sandbox, &page, "finish").await;
    let tried = async {
        while sandbox.stats().webhook_calls.total < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(600), tried).await.unwrap();
    let took = began.elapsed();
    assert!((10..120).contains(&took.as_secs()), "{took:?}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(sandbox.stats().webhook_calls.total, 8);
}
