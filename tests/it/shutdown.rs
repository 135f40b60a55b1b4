//! SIGTERM and SIGINT: finish or hand back, and exit with 0. A second one ends all at once.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::interval,
};

use crate::support::{
    Answer, Flow, Latch, Platform, Proxy, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    wait_until, within_timeout,
    worker::{Settings, command, signal},
};

#[tokio::test]
async fn an_idle_worker_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let env = TestEnv::start().await;
        let mut worker = env.start_worker().await;
        worker.signal(signal);
        assert_eq!(worker.wait_for_exit().await, Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_worker_that_never_reached_rabbitmq_ends_at_once() {
    let mut env = TestEnv::start().await;
    env.set("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/%2f");
    let mut worker = Worker::start(&env.settings);
    worker.wait_for_log(log_text::NOT_CONSUMING).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
}

#[tokio::test]
async fn what_is_in_flight_is_finished() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let mut worker = env.start_worker().await;
    for n in 0..20 {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
    env.platform.wait_for_calls(20).await;
    worker.signal("TERM");
    worker.wait_for_log(log_text::SHUTTING_DOWN).await;
    // Nothing is taken any more.
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
async fn what_waits_to_be_tried_again_is_handed_back_at_once() {
    let script = |call: &Call| match call.is_token() {
        true => success(call),
        false => Answer::status(503).header("retry-after", "60"),
    };
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    env.set("RETRY_BUDGET", "5m").set("SHUTDOWN_GRACE", "2m");
    let mut worker = env.start_worker().await;
    env.publish_request("r-1", "ann").await;
    env.platform.wait_for_calls(2).await;
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
    env.rabbitmq.wait_for_depth(1).await;

    // The next worker finds it as it was, token included.
    env.platform.set_script(success);
    let _worker = env.start_worker().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["requestId"], "r-1");
    assert_eq!(env.platform.token_calls().len(), 1);
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_handed_back() {
    let (_never, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
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
async fn a_silent_rabbitmq_does_not_stretch_the_grace() {
    let mut env = TestEnv::start().await;
    let proxy = Proxy::to(env.setting("AMQP_URL")).await;
    let url = proxy.url(env.setting("AMQP_URL"));
    env.set("AMQP_URL", &url).set("SHUTDOWN_GRACE", "2s");
    let mut worker = env.start_worker().await;
    proxy.set_flow(Flow::Held);
    let asked = Instant::now();
    worker.signal("TERM");
    assert_eq!(worker.wait_for_exit().await, Some(0));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn those_who_wait_for_a_failing_call_begin_none_of_their_own() {
    let latch = Latch::closed();
    let script = {
        let latch = latch.clone();
        move |_: &Call| Answer::status(503).held_by(&latch)
    };
    let env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
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
async fn a_second_signal_ends_it_at_once_with_a_status_of_its_own() {
    for second in ["TERM", "INT"] {
        let (_never, script) = hold_calls(|call| !call.is_token());
        let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
        let mut worker = env.start_worker().await;
        env.publish_request("r-1", "ann").await;
        env.platform.wait_for_calls(2).await;
        worker.signal("TERM");
        worker.wait_for_log(log_text::SHUTTING_DOWN).await;
        // One that is let finish would take its 25 s.
        let asked = Instant::now();
        worker.signal(second);
        assert_eq!(worker.wait_for_exit().await, Some(3), "{second}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        let told = log_text::SECOND_SIGNAL;
        wait_until(told, async || worker.output().contains(told)).await;
        // What was in its hands comes back.
        env.platform.set_script(success);
        let _worker = env.start_worker().await;
        assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_sandbox_at_once() {
    let settings = Settings::from([("HANDOFF_LOG".to_owned(), "info".to_owned())]);
    let mut sandbox = command(&["sandbox", "--addr", "127.0.0.1:0"], &settings)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(sandbox.stdout.take().unwrap()).lines();
    let line = within_timeout("the address", shown.next_line()).await.unwrap().unwrap();
    // Somebody takes their time over a request.
    let mut client = TcpStream::connect(line.rsplit('/').next().unwrap()).await.unwrap();
    let begun = b"POST /api/device/ephemeral HTTP/1.1\r\ncontent-length: 10\r\n\r\n";
    client.write_all(begun).await.unwrap();
    let mut log = BufReader::new(sandbox.stderr.take().unwrap()).lines();
    let mut told = async |what: &str| {
        while !within_timeout(what, log.next_line()).await.unwrap().unwrap().contains(what) {}
    };
    told(log_text::SANDBOX_READY).await;
    signal(&sandbox, "INT");
    told(log_text::SANDBOX_STOPPING).await;
    signal(&sandbox, "INT");
    told(log_text::SECOND_SIGNAL).await;
    assert_eq!(within_timeout("its end", sandbox.wait()).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn rolling_restarts_lose_and_double_nothing() {
    const REQUESTS: usize = 300;
    const USERS: usize = 100;
    let latency = Duration::from_millis(50);
    let platform = Platform::scripted(move |call| success(call).after(latency)).await;
    let mut env = TestEnv::builder().platform(platform).start().await;
    env.set("CONCURRENCY", "8");
    let mut workers =
        vec![env.start_worker().await, env.start_worker().await, env.start_worker().await];
    let sent = AtomicUsize::new(0);
    let stream = async {
        let mut pace = interval(Duration::from_millis(10));
        for n in 0..REQUESTS {
            pace.tick().await;
            let user = json!({ "userId": format!("user-{}", n % USERS) });
            env.rabbitmq.publish_request(&format!("r-{n}"), user).await;
            sent.store(n + 1, Ordering::Relaxed);
        }
    };
    // Redis is given 250 ms an answer; where this machine is too busy for that, a session more is no fault.
    let mut without_redis = 0;
    let restarts = async {
        for worker in &mut workers {
            worker.signal("TERM");
            assert_eq!(worker.wait_for_exit().await, Some(0), "{}", worker.output());
            let ended = std::mem::replace(worker, env.start_worker().await);
            without_redis += ended.log_lines(log_text::REQUEST_WITHOUT_CACHE).len();
            without_redis += ended.log_lines(log_text::LINK_NOT_STORED).len();
        }
        sent.load(Ordering::Relaxed)
    };
    let (_, sent) = tokio::join!(stream, restarts);
    assert!((10..REQUESTS).contains(&sent), "{sent} were sent when all were restarted");

    let (mut told, mut sessions) = (BTreeSet::new(), BTreeSet::new());
    let mut requests = BTreeSet::new();
    while requests.len() < REQUESTS {
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready");
        let data = event.data();
        told.insert(event.json()["id"].to_string());
        sessions.insert((data["userId"].to_string(), data["sessionId"].to_string()));
        requests.insert(data["requestId"].to_string());
    }
    for worker in &workers {
        without_redis += worker.log_lines(log_text::REQUEST_WITHOUT_CACHE).len();
        without_redis += worker.log_lines(log_text::LINK_NOT_STORED).len();
    }
    assert_eq!(told.len(), REQUESTS);
    let made = env.platform.session_calls().len();
    assert!(made <= USERS + without_redis, "{made} sessions, {without_redis} without Redis");
    assert!(sessions.len() <= made);
    assert_eq!(env.dead_letters().await, 0);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn what_is_handed_back_again_and_again_is_not_given_up_on() {
    let mut env = TestEnv::builder()
        .platform(Platform::scripted(|_| Answer::status(401)).await)
        .start()
        .await;
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
