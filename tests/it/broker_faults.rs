//! RabbitMQ breaks in every way there is, and the worker goes on: nothing is lost, nothing stays behind.

use std::time::{Duration, Instant};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Flow, Message, Node, Platform, TestEnv, Worker, log_text,
    platform::{Call, hold_calls, success},
    wait_until,
};

/// When RabbitMQ answers in AMQP again.
async fn answers(url: &str) -> OffsetDateTime {
    let url = url::Url::parse(url).unwrap();
    let address = (url.host_str().unwrap(), url.port().unwrap());
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(b"AMQP\0\0\x09\x01").await.is_ok()
            && let Ok(1) = stream.read_u8().await
        {
            return OffsetDateTime::now_utc();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn logged_at(line: &serde_json::Value) -> OffsetDateTime {
    OffsetDateTime::parse(line["timestamp"].as_str().unwrap(), &Rfc3339).unwrap()
}

/// How many requests it has served.
async fn served(worker: &Worker) -> f64 {
    worker.metric(r#"handoff_requests_total{outcome="ready"}"#).await
}

#[tokio::test]
async fn rabbitmq_may_be_killed_in_the_middle_of_300_requests() {
    let node = Node::rabbitmq().await;
    // However fast the machine, some are not through when it dies.
    let (latch, script) = hold_calls(|call| call.nth >= 200);
    let slowed = move |call: &Call| script(call).after(Duration::from_millis(20));
    let mut env = TestEnv::builder()
        .platform(Platform::scripted(slowed).await)
        .rabbitmq(&node)
        .queue_events()
        .start()
        .await;
    env.set("CONCURRENCY", "16");
    let worker = env.start_worker().await;
    env.publish_requests(0..300).await;
    wait_until("some are served", async || served(&worker).await >= 60.0).await;
    node.kill().await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    latch.open();
    worker.assert_alive().await;
    assert_eq!(worker.get("/readyz").await.0, 503);

    let (_, accepting) = tokio::join!(node.start(), answers(&node.url));
    let consuming = worker.wait_for_logs(log_text::CONSUMING, 2).await;
    let gap = logged_at(&consuming) - accepting;
    println!("consuming {gap} after RabbitMQ answers");
    assert!(gap < Duration::from_secs(3), "{gap}");
    env.reconnect().await;
    env.expect_all_ready(300).await;
    assert_eq!(env.platform.session_calls().len(), 300);
    worker.assert_alive().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_network_that_swallows_all_for_20_seconds_leaves_nothing_behind() {
    let mut env = TestEnv::start().await;
    let proxy = env.amqp_proxy_with_heartbeat(2).await;
    let worker = env.start_worker().await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;
    // The end of a first connection leaves a thread behind, that of a second no other.
    proxy.close_connections();
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    let before = worker.resources(proxy.addr);

    let (latch, script) = hold_calls(|call| call.user_is("user-10"));
    env.platform.set_script(script);
    env.publish_requests(0..11).await;
    env.platform.wait_for_calls(22).await;
    proxy.set_flow(Flow::Dropped);
    let vanished = Instant::now();
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 2).await;
    latch.open();
    env.publish_requests(0..30).await;
    while vanished.elapsed() < Duration::from_secs(20) {
        worker.assert_alive().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // However often it has tried meanwhile.
    worker.assert_no_leak_since(before, proxy.addr).await;
    proxy.set_flow(Flow::Forwarded);
    worker.wait_for_logs(log_text::CONSUMING, 3).await;
    env.expect_all_ready(30).await;
    assert_eq!(env.platform.session_calls().len(), 30);
    println!("before: {before:?}, after: {:?}", worker.resources(proxy.addr));
    worker.assert_no_leak_since(before, proxy.addr).await;
}

#[tokio::test]
async fn an_exchange_or_a_binding_that_is_deleted_comes_back_by_itself() {
    let mut env = TestEnv::start().await;
    let worker = env.start_worker().await;
    let request = json!({ "userId": "ann" });
    env.rabbitmq.delete_exchange(&env.rabbitmq.request_exchange.clone()).await;
    wait_until("it is routed", async || {
        env.rabbitmq.try_publish_request("r-1", request.clone()).await
    })
    .await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    env.rabbitmq.unbind_request_queue().await;
    wait_until("it is routed", async || {
        env.rabbitmq.try_publish_request("r-2", request.clone()).await
    })
    .await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-2");
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
}

#[tokio::test]
async fn without_declaring_what_is_deleted_is_told_once_and_ends_nothing() {
    let mut env = TestEnv::start().await;
    env.declare_topology().await;
    env.set("DECLARE_TOPOLOGY", "false");
    let worker = env.start_worker().await;
    let exchange = env.rabbitmq.request_exchange.clone();
    env.rabbitmq.delete_exchange(&exchange).await;
    let line = worker.wait_for_log(log_text::TOPOLOGY_DIFFERS).await;
    assert!(line["error"].as_str().unwrap().contains(&exchange), "{line}");
    // Whatever reaches the queue is served.
    let request = Message {
        routing_key: env.rabbitmq.queue.clone(),
        properties: lapin::BasicProperties::default().with_message_id("r-1".into()),
        body: json!({ "userId": "ann" }).to_string().into(),
    };
    env.rabbitmq.publish_to_queue(&env.rabbitmq.queue, &request).await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-1");
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 1);
    assert_eq!(worker.log_lines(log_text::TOPOLOGY_DIFFERS).len(), 1);
}

#[tokio::test]
async fn connections_that_break_again_and_again_leave_no_request_in_hand() {
    let latency = Duration::from_millis(5);
    let platform = Platform::scripted(move |call| success(call).after(latency)).await;
    let mut env = TestEnv::builder().platform(platform).start().await;
    let proxy = env.proxy("AMQP_URL").await;
    env.set("CONCURRENCY", "16");
    let worker = env.start_worker().await;
    for cut in 0..10 {
        let served = env.platform.calls().len();
        let requests = env.publish_requests(cut * 30..(cut + 1) * 30);
        let cutting = async {
            env.platform.wait_for_calls(served + 20).await;
            proxy.close_connections();
        };
        tokio::join!(requests, cutting);
        worker.wait_for_logs(log_text::CONSUMING, cut + 2).await;
    }
    env.expect_all_ready(300).await;
    // An acknowledgement that met the end of its connection must not be waited for.
    worker.wait_for_in_flight(0).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_channel_that_rabbitmq_closes_is_opened_anew() {
    let mut env = TestEnv::start().await;
    let proxy = env.proxy("AMQP_URL").await;
    let worker = env.start_worker().await;
    // `basic.ack` of the first delivery becomes one of a delivery that never was.
    proxy.rewrite_requests(b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01", b"\0\x3c\0\x50\0\0\0\0\0\0\0\x63");
    env.publish_request("r-1", "ann").await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    proxy.stop_rewriting();
    let fault = lost[log_text::RABBITMQ_LOST_CAUSE].as_str().unwrap();
    assert!(fault.contains("PRECONDITION_FAILED - unknown delivery tag 99"), "{fault}");
    // The request comes again, and so does its event, under the same id.
    let told = [env.rabbitmq.next_event().await, env.rabbitmq.next_event().await];
    assert_eq!(told[0].json()["id"], told[1].json()["id"]);
    assert_eq!(told[1].data()["reused"], true);
    worker.wait_for_in_flight(0).await;
    env.rabbitmq.wait_for_depth(0).await;
}

/// One node for all of it: starting one takes longer than most of these.
#[tokio::test]
async fn whatever_a_rabbitmq_that_lives_does_costs_nothing() {
    let node = Node::rabbitmq().await;
    let mut env = TestEnv::builder().rabbitmq(&node).start().await;
    let url = node.url.replace("guest:guest", "worker:s3cret-that-nobody-may-see");
    env.set("AMQP_URL", &format!("{url}?heartbeat=2"));

    // A wrong password that becomes right.
    node.ctl(&["add_user", "worker", "another"]).await;
    node.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await;
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert!(line["error"].as_str().unwrap().contains("ACCESS_REFUSED"), "{line}");
    worker.assert_alive().await;
    node.ctl(&["change_password", "worker", "s3cret-that-nobody-may-see"]).await;
    worker.wait_for_log(log_text::CONSUMING).await;
    assert!(!worker.output().contains("s3cret"));
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;

    // Connections that RabbitMQ closes.
    node.ctl(&["close_all_user_connections", "worker", "maintenance"]).await;
    let lost = worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    assert!(
        lost[log_text::RABBITMQ_LOST_CAUSE].as_str().unwrap().contains("maintenance"),
        "{lost}"
    );
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    env.publish_requests(0..20).await;
    env.expect_all_ready(20).await;
    let address = url::Url::parse(&node.url).unwrap().socket_addrs(|| None).unwrap()[0];
    let before = worker.resources(address);

    // A subscription that it forgets.
    let forget = format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{}">>)),
        [C | _] = rabbit_amqqueue:consumers(Q), Consumer = {{element(2, C), element(1, C)}},
        Cancel = rabbit_fifo:make_checkout(Consumer, cancel, #{{}}),
        {{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q), Cancel)."#,
        env.rabbitmq.queue
    );
    node.ctl(&["eval", &forget]).await;
    env.publish_requests(0..20).await;
    let lost = worker.wait_for_logs(log_text::RABBITMQ_LOST, 2).await;
    assert_eq!(lost[log_text::RABBITMQ_LOST_CAUSE], log_text::CONSUMER_FORGOTTEN);
    env.expect_all_ready(20).await;

    // A memory alarm: what is made meanwhile is told after, and nothing is taken for a fault.
    let (latch, script) = hold_calls(|call| call.user_is("user-20"));
    env.platform.set_script(script);
    env.publish_requests(0..21).await;
    env.platform.wait_for_calls(42).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    latch.open();
    worker.wait_for_log(log_text::PUBLISHING_BLOCKED).await;
    assert_eq!(worker.get("/readyz").await.0, 200);
    worker.assert_alive().await;
    node.ctl(&["set_vm_memory_high_watermark", "0.9"]).await;
    worker.wait_for_log(log_text::PUBLISHING_UNBLOCKED).await;
    env.expect_all_ready(21).await;
    assert_eq!(worker.log_lines(log_text::CONSUMING).len(), 3);

    // A quorum queue that is full, and then has no limit any more.
    let full = r#"{"max-length":0,"overflow":"reject-publish"}"#;
    node.ctl(&["set_policy", "full", r"\.dead$", full]).await;
    let mut published = 0;
    // It takes a few more than it says.
    while worker.log_lines(log_text::COPY_NOT_TAKEN).is_empty() {
        env.rabbitmq.publish("not a request", Default::default()).await;
        assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
        published += 1;
    }
    node.ctl(&["clear_policy", "full"]).await;
    let dead = env.dead_queue();
    wait_until("all are taken", async || env.rabbitmq.depth(&dead).await == published).await;
    node.ctl(&["purge_queue", &dead]).await;

    // It freezes.
    node.freeze().await;
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 3).await;
    worker.wait_for_logs(log_text::NOT_CONSUMING, 2).await;
    worker.assert_alive().await;
    node.thaw().await;
    worker.wait_for_logs(log_text::CONSUMING, 4).await;
    env.publish_requests(0..22).await;
    env.expect_all_ready(22).await;
    worker.assert_no_leak_since(before, address).await;

    // It is restarted in good order.
    node.stop().await;
    worker.wait_for_logs(log_text::RABBITMQ_LOST, 4).await;
    node.start().await;
    worker.wait_for_logs(log_text::CONSUMING, 5).await;
    env.reconnect().await;
    env.publish_requests(0..23).await;
    env.expect_all_ready(23).await;
    assert_eq!(env.platform.session_calls().len(), 23);
    worker.assert_no_leak_since(before, address).await;
    worker.stop().await;
}

#[tokio::test]
async fn deleted_queues_are_declared_again() {
    let mut env = TestEnv::start().await;
    env.set("RETRY_DELAYS", "200ms");
    let worker = env.start_worker().await;
    env.rabbitmq.delete_queue(&env.rabbitmq.queue.clone()).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    // So are those that are found missing when a copy is to be published.
    env.rabbitmq.delete_queue(&env.dead_queue()).await;
    env.rabbitmq.publish("not a request", Default::default()).await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.failed");
    worker.wait_for_log(log_text::REQUEST_FINISHED).await;
    env.rabbitmq.take_dead_letter().await;
    env.publish_request("r-1", "ann").await;
    assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn a_deleted_event_exchange_is_declared_again() {
    let mut env = TestEnv::builder().without_event_queue().start().await;
    env.set("RETRY_DELAYS", "200ms,5m");
    let worker = env.start_worker().await;
    env.rabbitmq.delete_exchange(&env.rabbitmq.event_exchange.clone()).await;
    env.publish_request("r-1", "ann").await;
    // There is an exchange again, but nobody is bound to it yet.
    assert_eq!(worker.wait_for_log(log_text::REQUEST_FINISHED).await["outcome"], "retried");
    env.rabbitmq.consume_events().await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}

#[tokio::test]
async fn a_worker_waits_for_rabbitmq_and_survives_its_restart() {
    let node = Node::rabbitmq().await;
    let (session, script) = hold_calls(|call| call.user_is("slow"));
    let platform = Platform::scripted(script).await;
    let mut env = TestEnv::builder().platform(platform).rabbitmq(&node).start().await;
    node.stop().await;
    let worker = Worker::start(&env.settings);
    worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert_eq!(worker.get("/readyz").await.0, 503);
    node.start().await;
    worker.wait_for_log(log_text::CONSUMING).await;

    env.reconnect().await;
    env.publish_request("r-0", "quick").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["requestId"], "r-0");
    // One is in the middle of its session call when RabbitMQ dies.
    env.publish_request("r-1", "slow").await;
    env.platform.wait_for_calls(4).await;
    node.kill().await;
    worker.wait_for_log(log_text::RABBITMQ_LOST).await;
    assert_eq!(worker.metric("handoff_broker_connected").await, 0.0);
    session.open();
    crate::support::wait_until("the link is cached", async || {
        env.redis_entries().await.iter().filter(|entry| entry.key.ends_with(":link")).count() == 2
    })
    .await;
    node.start().await;
    env.reconnect().await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(
        (&event.data()["requestId"], &event.data()["reused"]),
        (&json!("r-1"), &json!(true))
    );
    assert_eq!(env.platform.session_calls().len(), 2);
    assert_eq!(worker.metric("handoff_broker_connected").await, 1.0);
}

#[tokio::test]
async fn what_is_in_flight_when_the_queue_is_deleted_is_served_all_the_same() {
    let (latch, script) = hold_calls(|_| true);
    let mut env = TestEnv::builder().platform(Platform::scripted(script).await).start().await;
    let worker = env.start_worker().await;
    for n in 0..5 {
        env.publish_request(&format!("r-{n}"), &format!("user-{n}")).await;
    }
    env.platform.wait_for_calls(5).await;
    env.rabbitmq.delete_queue(&env.rabbitmq.queue.clone()).await;
    worker.wait_for_logs(log_text::CONSUMING, 2).await;
    latch.open();
    let events = env.rabbitmq.next_events(5).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    env.publish_request("r-5", "user-0").await;
    assert_eq!(env.rabbitmq.next_event().await.data()["reused"], true);
}
