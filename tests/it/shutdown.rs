//! SIGTERM and SIGINT: finish or return each request, and exit with 0. A second signal exits at once.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::interval,
};

use crate::support::{
    Answer, Flow, Latch, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    wait_until, within_timeout,
    worker::{Settings, command, signal},
};

#[tokio::test]
async fn idle_worker_exits_at_once() {
    for signal in ["TERM", "INT"] {
        let mut env = TestEnv::start().await;
        // Longer than the test waits: a worker that used its grace period would not exit in time.
        env.set("SHUTDOWN_GRACE", "2m");
        let mut worker = env.start_worker().await;
        worker.signal(signal);
        assert_eq!(worker.wait_for_exit().await, Some(0), "{signal}");
    }
}

#[tokio::test]
async fn worker_that_never_reached_rabbitmq_exits_at_once() {
    let mut env = TestEnv::start().await;
    env.set("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f").set("SHUTDOWN_GRACE", "2m");
    let mut worker = Worker::start(&env.settings);
    worker.wait_for_log(log_text::NOT_CONSUMING).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
}

#[tokio::test]
async fn requests_in_flight_are_finished() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    let mut worker = env.start_worker().await;
    env.publish_requests(0..20).await;
    env.platform.wait_for_calls(20).await;
    worker.signal("TERM");
    worker.wait_for_log(log_text::SHUTTING_DOWN).await;
    // A draining worker consumes no new request.
    env.publish_request("late", "late").await;
    latch.open();
    let mut served: Vec<_> = env
        .rabbitmq
        .next_events(20)
        .await
        .iter()
        .map(|event| event.data()["requestId"].to_string())
        .collect();
    served.sort();
    served.dedup();
    assert_eq!(served.len(), 20);
    assert_eq!(worker.wait_for_exit().await, Some(0));
    env.rabbitmq.wait_for_depth(1).await;
    assert_eq!(env.platform.session_calls().len(), 20);
}

#[tokio::test]
async fn request_waiting_for_its_next_try_is_returned_at_once() {
    let script = |call: &Call| {
        if call.is_token() {
            success(call)
        } else {
            Answer::status(503).header("retry-after", "60")
        }
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("RETRY_BUDGET", "5m").set("SHUTDOWN_GRACE", "2m");
    let mut worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
    env.rabbitmq.wait_for_depth(1).await;

    // The next worker serves it with the token of the first.
    env.platform.set_script(success);
    let _worker = env.start_worker().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "r-1");
    assert_eq!(env.platform.token_calls().len(), 1);
}

#[tokio::test]
async fn request_unfinished_after_the_grace_period_is_returned() {
    let (_never, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("SHUTDOWN_GRACE", "1s");
    let mut worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(1).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
    env.rabbitmq.wait_for_depth(1).await;
    env.platform.set_script(success);
    let _worker = env.start_worker().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
}

#[tokio::test]
async fn silent_rabbitmq_does_not_extend_the_grace_period() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    env.set("SHUTDOWN_GRACE", "2s");
    let mut worker = env.start_worker().await;
    proxy.set_flow(Flow::Held);
    let asked = Instant::now();
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn draining_requests_that_share_a_failing_call_make_none_themselves() {
    let latch = Latch::closed();
    let script = {
        let latch = latch.clone();
        move |_: &Call| Answer::status(503).held_by(&latch)
    };
    let env = TestEnv::builder().platform(script).start().await;
    let mut worker = env.start_worker().await;
    for n in 0..20 {
        env.publish_request(&format!("r-{n}"), "ann").await;
    }
    env.platform.wait_for_calls(1).await;
    worker.wait_for_in_flight(20).await;
    worker.signal("TERM");
    worker.wait_for_log(log_text::SHUTTING_DOWN).await;
    latch.open();
    assert_eq!(worker.wait_for_exit().await, Some(0));
    assert_eq!(env.platform.calls().len(), 1);
    env.rabbitmq.wait_for_depth(20).await;
}

#[tokio::test]
async fn second_signal_exits_at_once_with_status_3() {
    for second in ["TERM", "INT"] {
        let (_never, script) = hold_calls(|call| !call.is_token());
        let mut env = TestEnv::builder().platform(script).start().await;
        let mut worker = env.start_worker().await;
        env.publish_request("r-1", "ann").await;
        env.platform.wait_for_calls(2).await;
        worker.signal("TERM");
        worker.wait_for_log(log_text::SHUTTING_DOWN).await;
        // Draining would take the grace period of 25 s: the call is never answered.
        let asked = Instant::now();
        worker.signal(second);
        assert_eq!(worker.wait_for_exit().await, Some(3), "{second}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        let notice = log_text::SECOND_SIGNAL;
        wait_until(notice, async || worker.output().contains(notice)).await;
        // RabbitMQ redelivers the request it held.
        env.platform.set_script(success);
        let _worker = env.start_worker().await;
        assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    }
}

#[tokio::test]
async fn second_signal_exits_the_sandbox_at_once() {
    let settings = Settings::from([("HANDOFF_LOG".to_owned(), "info".to_owned())]);
    let mut sandbox = command(&["sandbox", "--addr", "127.0.0.1:0"], &settings)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(sandbox.stdout.take().unwrap()).lines();
    let line = within_timeout("the address", shown.next_line()).await.unwrap().unwrap();
    // A client that never completes its request keeps the sandbox from draining.
    let mut client = TcpStream::connect(line.rsplit('/').next().unwrap()).await.unwrap();
    let incomplete = b"POST /api/device/ephemeral HTTP/1.1\r\ncontent-length: 10\r\n\r\n";
    client.write_all(incomplete).await.unwrap();
    let mut log = BufReader::new(sandbox.stderr.take().unwrap()).lines();
    let mut wait_for_line = async |what: &str| {
        while !within_timeout(what, log.next_line()).await.unwrap().unwrap().contains(what) {}
    };
    wait_for_line(log_text::SANDBOX_READY).await;
    signal(&sandbox, "INT");
    wait_for_line(log_text::SANDBOX_STOPPING).await;
    signal(&sandbox, "INT");
    wait_for_line(log_text::SECOND_SIGNAL).await;
    assert_eq!(within_timeout("its exit", sandbox.wait()).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn rolling_restart_loses_no_request_and_doubles_no_event() {
    const REQUESTS: usize = 300;
    const USERS: usize = 100;
    let slow = |call: &Call| success(call).after(Duration::from_millis(50));
    let mut env = TestEnv::builder().platform(slow).start().await;
    env.set("CONCURRENCY", "8");
    let mut workers =
        vec![env.start_worker().await, env.start_worker().await, env.start_worker().await];
    let sent = AtomicUsize::new(0);
    let stream = async {
        let mut pace = interval(Duration::from_millis(10));
        for n in 0..REQUESTS {
            pace.tick().await;
            env.publish_request(&format!("r-{n}"), &format!("user-{}", n % USERS)).await;
            sent.store(n + 1, Ordering::Relaxed);
        }
    };
    // Redis has 250 ms to answer. On a busy machine it may need longer, and then the worker correctly
    // makes one session more.
    let mut without_redis = 0;
    let restarts = async {
        for worker in &mut workers {
            worker.signal("TERM");
            assert_eq!(worker.wait_for_exit().await, Some(0), "{}", worker.output());
            let ended = std::mem::replace(worker, env.start_worker().await);
            without_redis += served_without_redis(&ended);
        }
        sent.load(Ordering::Relaxed)
    };
    let (_, sent) = tokio::join!(stream, restarts);
    assert!((10..REQUESTS).contains(&sent), "{sent} were sent when all were restarted");

    let mut event_ids = BTreeSet::new();
    let mut sessions = BTreeSet::new();
    let mut requests = BTreeSet::new();
    while requests.len() < REQUESTS {
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready");
        let data = event.data();
        event_ids.insert(event.json()["id"].to_string());
        sessions.insert((data["userId"].to_string(), data["sessionId"].to_string()));
        requests.insert(data["requestId"].to_string());
    }
    for worker in &workers {
        without_redis += served_without_redis(worker);
    }
    assert_eq!(event_ids.len(), REQUESTS);
    let made = env.platform.session_calls().len();
    assert!(made <= USERS + without_redis, "{made} sessions, {without_redis} without Redis");
    assert!(sessions.len() <= made);
    assert_eq!(env.dead_letters().await, 0);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn request_returned_25_times_spends_no_attempt() {
    let mut env = TestEnv::builder().platform(|_| Answer::status(401)).start().await;
    for life in 0..25 {
        let worker = env.start_worker().await;
        if life == 0 {
            env.publish_request("r-1", "ann").await;
        }
        worker.wait_for_in_flight(1).await;
        worker.stop().await;
    }
    env.platform.set_script(success);
    let worker = env.start_worker().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    assert_eq!(worker.wait_for_finished(1).await["attempt"], 1);
    assert_eq!(env.dead_letters().await, 0);
}

/// How many requests a worker served without Redis, or whose link it could not store.
fn served_without_redis(worker: &Worker) -> usize {
    worker.log_lines(log_text::REQUEST_WITHOUT_CACHE).len()
        + worker.log_lines(log_text::LINK_NOT_STORED).len()
}
