//! RabbitMQ breaks in every way there is, and the worker goes on: nothing is lost, nothing stays behind.

use std::time::{Duration, Instant};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Bench, Flow, Message, Node, Platform, Proxy, Worker, log_text,
    platform::{Call, hold_calls, success},
    until,
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
    let mut bench = Bench::keeping_events(Platform::scripted(slowed).await, &node).await;
    bench.set("CONCURRENCY", "16");
    let worker = bench.worker().await;
    bench.requests(0..300).await;
    until("some are served", async || served(&worker).await >= 60.0).await;
    node.kill().await;
    worker.logged(log_text::RABBITMQ_LOST).await;
    latch.open();
    worker.is_alive().await;
    assert_eq!(worker.page("/readyz").await.0, 503);

    let (_, accepting) = tokio::join!(node.start(), answers(&node.url));
    let consuming = worker.logged_times(log_text::CONSUMING, 2).await;
    let gap = logged_at(&consuming) - accepting;
    println!("consuming {gap} after RabbitMQ answers");
    assert!(gap < Duration::from_secs(3), "{gap}");
    bench.reconnect().await;
    bench.all_ready(300).await;
    assert_eq!(bench.platform.session_calls().len(), 300);
    worker.is_alive().await;
    worker.stop().await;
}

#[tokio::test]
async fn a_network_that_swallows_all_for_20_seconds_leaves_nothing_behind() {
    let mut bench = Bench::new().await;
    let proxy = Proxy::to(&bench.settings["HANDOFF_AMQP_URL"]).await;
    let url = proxy.url(&bench.settings["HANDOFF_AMQP_URL"]);
    bench.set("AMQP_URL", &format!("{url}?heartbeat=2"));
    let worker = bench.worker().await;
    bench.requests(0..10).await;
    bench.all_ready(10).await;
    // The end of a first connection leaves a thread behind, that of a second no other.
    proxy.cut();
    worker.logged_times(log_text::CONSUMING, 2).await;
    let before = worker.holdings(proxy.addr);

    let (latch, script) = hold_calls(|call| call.user_is("user-10"));
    bench.platform.set_script(script);
    bench.requests(0..11).await;
    bench.platform.wait_for_calls(22).await;
    proxy.both(Flow::Vanishes);
    let vanished = Instant::now();
    worker.logged_times(log_text::RABBITMQ_LOST, 2).await;
    latch.open();
    bench.requests(0..30).await;
    while vanished.elapsed() < Duration::from_secs(20) {
        worker.is_alive().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // However often it has tried meanwhile.
    worker.holds_no_more_than(before, proxy.addr).await;
    proxy.both(Flow::Passes);
    worker.logged_times(log_text::CONSUMING, 3).await;
    bench.all_ready(30).await;
    assert_eq!(bench.platform.session_calls().len(), 30);
    println!("before: {before:?}, after: {:?}", worker.holdings(proxy.addr));
    worker.holds_no_more_than(before, proxy.addr).await;
}

#[tokio::test]
async fn an_exchange_or_a_binding_that_is_deleted_comes_back_by_itself() {
    let mut bench = Bench::new().await;
    let worker = bench.worker().await;
    let request = json!({ "userId": "ann" });
    bench.rabbit.delete_exchange(&bench.rabbit.request_exchange.clone()).await;
    until("it is routed", async || bench.rabbit.try_request("r-1", request.clone()).await).await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-1");
    bench.rabbit.unbind().await;
    until("it is routed", async || bench.rabbit.try_request("r-2", request.clone()).await).await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-2");
    assert_eq!(worker.lines(log_text::CONSUMING).len(), 1);
}

#[tokio::test]
async fn without_declaring_what_is_deleted_is_told_once_and_ends_nothing() {
    let mut bench = Bench::new().await;
    bench.worker().await.stop().await;
    bench.set("DECLARE_TOPOLOGY", "false");
    let worker = bench.worker().await;
    let exchange = bench.rabbit.request_exchange.clone();
    bench.rabbit.delete_exchange(&exchange).await;
    let line = worker.logged(log_text::TOPOLOGY_DIFFERS).await;
    assert!(line["error"].as_str().unwrap().contains(&exchange), "{line}");
    // Whatever reaches the queue is served.
    let request = Message {
        routing_key: bench.rabbit.queue.clone(),
        properties: lapin::BasicProperties::default().with_message_id("r-1".into()),
        body: json!({ "userId": "ann" }).to_string().into(),
    };
    bench.rabbit.put(&bench.rabbit.queue, &request).await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-1");
    assert_eq!(worker.lines(log_text::CONSUMING).len(), 1);
    assert_eq!(worker.lines(log_text::TOPOLOGY_DIFFERS).len(), 1);
}

#[tokio::test]
async fn connections_that_break_again_and_again_leave_no_request_in_hand() {
    let latency = Duration::from_millis(5);
    let platform = Platform::scripted(move |call| success(call).after(latency)).await;
    let mut bench = Bench::with(platform).await;
    let proxy = bench.through_proxy("AMQP_URL").await;
    bench.set("CONCURRENCY", "16");
    let worker = bench.worker().await;
    for cut in 0..10 {
        let served = bench.platform.calls().len();
        let requests = bench.requests(cut * 30..(cut + 1) * 30);
        let cutting = async {
            bench.platform.wait_for_calls(served + 20).await;
            proxy.cut();
        };
        tokio::join!(requests, cutting);
        worker.logged_times(log_text::CONSUMING, cut + 2).await;
    }
    bench.all_ready(300).await;
    // An acknowledgement that met the end of its connection must not be waited for.
    until("all are settled", async || worker.metric("handoff_in_flight").await == 0.0).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_channel_that_rabbitmq_closes_is_opened_anew() {
    let mut bench = Bench::new().await;
    let proxy = bench.through_proxy("AMQP_URL").await;
    let worker = bench.worker().await;
    // `basic.ack` of the first delivery becomes one of a delivery that never was.
    proxy.rewrite(b"\0\x3c\0\x50\0\0\0\0\0\0\0\x01", b"\0\x3c\0\x50\0\0\0\0\0\0\0\x63");
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    let lost = worker.logged(log_text::RABBITMQ_LOST).await;
    proxy.rewrite_nothing();
    let fault = lost[log_text::RABBITMQ_LOST_CAUSE].as_str().unwrap();
    assert!(fault.contains("PRECONDITION_FAILED - unknown delivery tag 99"), "{fault}");
    // The request comes again, and so does its event, under the same id.
    let told = [bench.rabbit.event().await, bench.rabbit.event().await];
    assert_eq!(told[0].json()["id"], told[1].json()["id"]);
    assert_eq!(told[1].data()["reused"], true);
    until("it is settled", async || worker.metric("handoff_in_flight").await == 0.0).await;
    bench.rabbit.holds(0).await;
}

/// One node for all of it: starting one takes longer than most of these.
#[tokio::test]
async fn whatever_a_rabbitmq_that_lives_does_costs_nothing() {
    let node = Node::rabbitmq().await;
    let mut bench = Bench::on_own_rabbitmq(Platform::healthy().await, &node).await;
    let url = node.url.replace("guest:guest", "worker:s3cret-that-nobody-may-see");
    bench.set("AMQP_URL", &format!("{url}?heartbeat=2"));

    // A wrong password that becomes right.
    node.ctl(&["add_user", "worker", "another"]).await;
    node.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await;
    let worker = Worker::start(&bench.settings);
    let line = worker.logged(log_text::NOT_CONSUMING).await;
    assert!(line["error"].as_str().unwrap().contains("ACCESS_REFUSED"), "{line}");
    worker.is_alive().await;
    node.ctl(&["change_password", "worker", "s3cret-that-nobody-may-see"]).await;
    worker.logged(log_text::CONSUMING).await;
    assert!(!worker.log().contains("s3cret"));
    bench.requests(0..10).await;
    bench.all_ready(10).await;

    // Connections that RabbitMQ closes.
    node.ctl(&["close_all_user_connections", "worker", "maintenance"]).await;
    let lost = worker.logged(log_text::RABBITMQ_LOST).await;
    assert!(
        lost[log_text::RABBITMQ_LOST_CAUSE].as_str().unwrap().contains("maintenance"),
        "{lost}"
    );
    worker.logged_times(log_text::CONSUMING, 2).await;
    bench.requests(0..20).await;
    bench.all_ready(20).await;
    let address = url::Url::parse(&node.url).unwrap().socket_addrs(|| None).unwrap()[0];
    let before = worker.holdings(address);

    // A subscription that it forgets.
    let forget = format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{}">>)),
        [C | _] = rabbit_amqqueue:consumers(Q), Consumer = {{element(2, C), element(1, C)}},
        Cancel = rabbit_fifo:make_checkout(Consumer, cancel, #{{}}),
        {{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q), Cancel)."#,
        bench.rabbit.queue
    );
    node.ctl(&["eval", &forget]).await;
    bench.requests(0..20).await;
    let lost = worker.logged_times(log_text::RABBITMQ_LOST, 2).await;
    assert_eq!(lost[log_text::RABBITMQ_LOST_CAUSE], log_text::CONSUMER_FORGOTTEN);
    bench.all_ready(20).await;

    // A memory alarm: what is made meanwhile is told after, and nothing is taken for a fault.
    let (latch, script) = hold_calls(|call| call.user_is("user-20"));
    bench.platform.set_script(script);
    bench.requests(0..21).await;
    bench.platform.wait_for_calls(42).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    latch.open();
    worker.logged(log_text::PUBLISHING_BLOCKED).await;
    assert_eq!(worker.page("/readyz").await.0, 200);
    worker.is_alive().await;
    node.ctl(&["set_vm_memory_high_watermark", "0.9"]).await;
    worker.logged(log_text::PUBLISHING_UNBLOCKED).await;
    bench.all_ready(21).await;
    assert_eq!(worker.lines(log_text::CONSUMING).len(), 3);

    // A quorum queue that is full, and then has no limit any more.
    let full = r#"{"max-length":0,"overflow":"reject-publish"}"#;
    node.ctl(&["set_policy", "full", r"\.dead$", full]).await;
    let mut published = 0;
    // It takes a few more than it says.
    while worker.lines(log_text::COPY_NOT_TAKEN).is_empty() {
        bench.rabbit.publish("not a request", Default::default()).await;
        assert_eq!(bench.rabbit.event().await.routing_key, "handoff.failed");
        published += 1;
    }
    node.ctl(&["clear_policy", "full"]).await;
    let dead = format!("{}.dead", bench.rabbit.queue);
    until("all are taken", async || bench.rabbit.depth(&dead).await == published).await;
    node.ctl(&["purge_queue", &dead]).await;

    // It freezes.
    node.freeze().await;
    worker.logged_times(log_text::RABBITMQ_LOST, 3).await;
    worker.logged_times(log_text::NOT_CONSUMING, 2).await;
    worker.is_alive().await;
    node.thaw().await;
    worker.logged_times(log_text::CONSUMING, 4).await;
    bench.requests(0..22).await;
    bench.all_ready(22).await;
    worker.holds_no_more_than(before, address).await;

    // It is restarted in good order.
    node.stop().await;
    worker.logged_times(log_text::RABBITMQ_LOST, 4).await;
    node.start().await;
    worker.logged_times(log_text::CONSUMING, 5).await;
    bench.reconnect().await;
    bench.requests(0..23).await;
    bench.all_ready(23).await;
    assert_eq!(bench.platform.session_calls().len(), 23);
    worker.holds_no_more_than(before, address).await;
    worker.stop().await;
}

#[tokio::test]
async fn deleted_queues_are_declared_again() {
    let mut bench = Bench::new().await;
    bench.set("RETRY_DELAYS", "200ms");
    let worker = bench.worker().await;
    bench.rabbit.delete_queue(&bench.rabbit.queue.clone()).await;
    worker.logged_times(log_text::CONSUMING, 2).await;
    // So are those that are found missing when a copy is to be published.
    bench.rabbit.delete_queue(&format!("{}.dead", bench.rabbit.queue)).await;
    bench.rabbit.publish("not a request", Default::default()).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.failed");
    worker.logged(log_text::REQUEST_FINISHED).await;
    bench.rabbit.dead_letter().await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    assert_eq!(bench.rabbit.event().await.routing_key, "handoff.ready");
}

#[tokio::test]
async fn a_deleted_event_exchange_is_declared_again() {
    let mut bench = Bench::deaf(Platform::healthy().await).await;
    bench.set("RETRY_DELAYS", "200ms,5m");
    let worker = bench.worker().await;
    bench.rabbit.delete_exchange(&bench.rabbit.event_exchange.clone()).await;
    bench.rabbit.request("r-1", json!({ "userId": "ann" })).await;
    // There is an exchange again, but nobody is bound to it yet.
    assert_eq!(worker.logged(log_text::REQUEST_FINISHED).await["outcome"], "retried");
    bench.rabbit.hear_events().await;
    assert_eq!(bench.rabbit.event().await.data()["reused"], true);
}

#[tokio::test]
async fn a_worker_waits_for_rabbitmq_and_survives_its_restart() {
    let node = Node::rabbitmq().await;
    let (session, script) = hold_calls(|call| call.user_is("slow"));
    let platform = Platform::scripted(script).await;
    let mut bench = Bench::on_own_rabbitmq(platform, &node).await;
    node.stop().await;
    let worker = Worker::start(&bench.settings);
    worker.logged(log_text::NOT_CONSUMING).await;
    assert_eq!(worker.page("/readyz").await.0, 503);
    node.start().await;
    worker.logged(log_text::CONSUMING).await;

    bench.reconnect().await;
    bench.rabbit.request("r-0", json!({ "userId": "quick" })).await;
    assert_eq!(bench.rabbit.event().await.data()["requestId"], "r-0");
    // One is in the middle of its session call when RabbitMQ dies.
    bench.rabbit.request("r-1", json!({ "userId": "slow" })).await;
    bench.platform.wait_for_calls(4).await;
    node.kill().await;
    worker.logged(log_text::RABBITMQ_LOST).await;
    assert_eq!(worker.metric("handoff_broker_connected").await, 0.0);
    session.open();
    crate::support::until("the link is cached", async || {
        bench.cached().await.iter().filter(|(key, ..)| key.ends_with(":link")).count() == 2
    })
    .await;
    node.start().await;
    bench.reconnect().await;
    let event = bench.rabbit.event().await;
    assert_eq!(
        (&event.data()["requestId"], &event.data()["reused"]),
        (&json!("r-1"), &json!(true))
    );
    assert_eq!(bench.platform.session_calls().len(), 2);
    assert_eq!(worker.metric("handoff_broker_connected").await, 1.0);
}

#[tokio::test]
async fn what_is_in_flight_when_the_queue_is_deleted_is_served_all_the_same() {
    let (latch, script) = hold_calls(|_| true);
    let mut bench = Bench::with(Platform::scripted(script).await).await;
    let worker = bench.worker().await;
    for n in 0..5 {
        bench.rabbit.request(&format!("r-{n}"), json!({ "userId": format!("user-{n}") })).await;
    }
    bench.platform.wait_for_calls(5).await;
    bench.rabbit.delete_queue(&bench.rabbit.queue.clone()).await;
    worker.logged_times(log_text::CONSUMING, 2).await;
    latch.open();
    let events = bench.rabbit.events(5).await;
    assert!(events.iter().all(|event| event.routing_key == "handoff.ready"));
    bench.rabbit.request("r-5", json!({ "userId": "user-0" })).await;
    assert_eq!(bench.rabbit.event().await.data()["reused"], true);
}
