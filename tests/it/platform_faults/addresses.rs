//! A platform whose name has several addresses.

use std::time::{Duration, Instant};

use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{Proxy, TempFile, TestEnv, Worker, log_text};

#[tokio::test]
async fn platform_with_a_silent_first_address_is_served_at_the_second() {
    let mut env = TestEnv::start().await;
    // Both are as far from 127.0.0.1 by their bits, so that the resolver keeps their order.
    let second = Proxy::at("127.0.0.3:0", &env.platform.url).await;
    let port = second.addr.port();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], port).into()).unwrap();
    let _first = socket.listen(1).unwrap();
    // Attempts to connect get no answer once its backlog is full.
    let mut backlog = Vec::new();
    let patience = Duration::from_millis(200);
    while let Ok(waiting) = timeout(patience, TcpStream::connect(("127.0.0.2", port))).await {
        backlog.push(waiting.unwrap());
    }
    let hosts = "127.0.0.1 localhost\n127.0.0.2 platform.test\n127.0.0.3 platform.test\n";
    env.set("IDV_URL", &format!("http://platform.test:{port}"));
    env.set("IDV_ALLOW_HTTP", "true").set("IDV_TIMEOUT", "4s");
    let hosts = TempFile::new(hosts);
    let worker = Worker::start_with_hosts(&hosts, &env.settings);
    worker.wait_for_log(log_text::CONSUMING).await;
    let began = Instant::now();
    env.publish_requests(0..1).await;
    env.expect_all_ready(1).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
