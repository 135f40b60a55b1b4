//! RabbitMQ with several addresses: nodes of a list, and addresses of one name.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::support::{TempFile, TestEnv, Worker, log_text, within_timeout, worker::command};

/// A peer that passes connections on to RabbitMQ after a delay, or never. Counts them.
struct Relay {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Relay {
    async fn at(addr: &str, env: &TestEnv, delay: Duration) -> Self {
        let url = url::Url::parse(env.setting("AMQP_URL")).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&accepted);
        let listening = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let server = server.clone();
                connections.spawn(async move {
                    sleep(delay).await;
                    let mut server = TcpStream::connect(server).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { addr, accepted, listening }
    }

    async fn silent(env: &TestEnv) -> Self {
        Self::at("127.0.0.1:0", env, Duration::from_secs(3_600)).await
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

#[tokio::test]
async fn unusable_nodes_of_a_list_are_passed_over() {
    let mut env = TestEnv::start().await;
    let good = env.setting("AMQP_URL").to_owned();
    let silent = Relay::silent(&env).await;
    let without_vhost = good.replace("%2f", "missing");
    let without_tls = good.replace("amqp://", "amqps://");
    let list =
        format!("amqp://127.0.0.1:1,amqp://{},{without_vhost},{without_tls},{good}", silent.addr);
    env.set("AMQP_URL", &list);
    // From whichever node each begins.
    for round in 0..4 {
        let worker = Worker::start(&env.settings);
        worker.wait_for_log(log_text::CONSUMING).await;
        env.publish_requests(round..round + 1).await;
        env.expect_all_ready(1).await;
        worker.stop().await;
    }
    let listed = command(&["dead-letters", "list"], &env.settings).output();
    let listed = within_timeout("its exit", listed).await.unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let found = command(&["doctor"], &env.settings).output();
    let found = within_timeout("its exit", found).await.unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("cannot connect to RabbitMQ's node 1 of 5"), "{found}");
    assert!(!found.contains("node 5 of 5"), "{found}");
}

#[tokio::test]
async fn silent_address_of_a_name_is_followed_by_the_next() {
    let mut env = TestEnv::start().await;
    // Both are as far from 127.0.0.1 by their bits, so that the resolver keeps their order.
    let second = Relay::at("127.0.0.3:0", &env, Duration::ZERO).await;
    let port = second.addr.port();
    let never = Duration::from_secs(3_600);
    let first = Relay::at(&format!("127.0.0.2:{port}"), &env, never).await;
    env.set("AMQP_URL", &format!("amqp://rabbitmq.test:{port}"));
    let hosts = "127.0.0.1 localhost\n127.0.0.2 rabbitmq.test\n127.0.0.3 rabbitmq.test\n";
    let hosts = TempFile::new(hosts);
    let worker = Worker::start_with_hosts(&hosts, &env.settings);
    worker.wait_for_log(log_text::CONSUMING).await;
    assert_eq!(first.accepted(), 1, "the second connection takes the same address");
    assert!(worker.log_lines(log_text::NOT_CONSUMING).is_empty());
}

#[tokio::test]
async fn slow_node_is_reached_because_each_try_waits_longer() {
    let mut env = TestEnv::start().await;
    let slow = Relay::at("127.0.0.1:0", &env, Duration::from_millis(2_600)).await;
    env.set("AMQP_URL", &format!("amqp://{}/", slow.addr));
    let listed = command(&["request", "--user", "ann", "--wait", "1ms"], &env.settings).output();
    let worker = env.start_worker().await;
    let listed = within_timeout("its exit", listed).await.unwrap();
    let stderr = String::from_utf8(listed.stderr).unwrap();
    assert!(!stderr.contains("connect to RabbitMQ"), "{stderr}");
    worker.stop().await;
}

#[tokio::test]
async fn refused_login_stays_at_its_node_and_is_repeated_less_and_less_often() {
    let mut env = TestEnv::start().await;
    let first = Relay::at("127.0.0.1:0", &env, Duration::ZERO).await;
    let second = Relay::at("127.0.0.1:0", &env, Duration::ZERO).await;
    let url = |relay: &Relay| format!("amqp://guest:wrong@{}", relay.addr);
    env.set("AMQP_URL", &format!("{},{}", url(&first), url(&second)));
    let worker = Worker::start(&env.settings);
    let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
    assert!(line["error"].as_str().unwrap().contains("ACCESS_REFUSED"), "{line}");
    let since = Instant::now();
    // Tries at 0, 1, 3 and 7 s.
    while first.accepted() + second.accepted() < 4 {
        sleep(Duration::from_millis(50)).await;
        assert!(since.elapsed() < Duration::from_secs(30));
    }
    assert!(since.elapsed() > Duration::from_millis(6_500), "{:?}", since.elapsed());
    assert_eq!(first.accepted().min(second.accepted()), 0);
}

#[tokio::test]
async fn connection_string_of_the_cluster_operator_is_read_from_its_file() {
    let mut env = TestEnv::start().await;
    let url = env.setting("AMQP_URL").replace("%2f", "");
    assert!(url.ends_with('/'));
    let file = TempFile::new(&url);
    env.settings.remove("HANDOFF_AMQP_URL");
    env.set("AMQP_URL_FILE", file.path());
    let _worker = env.start_worker().await;
    env.publish_requests(0..1).await;
    env.expect_all_ready(1).await;
}

#[tokio::test]
async fn ipv6_literal_leads_where_it_says() {
    let mut env = TestEnv::start().await;
    if TcpListener::bind("[::1]:0").await.is_err() {
        return; // This machine has no IPv6.
    }
    let relay = Relay::at("[::1]:0", &env, Duration::ZERO).await;
    env.set("AMQP_URL", &format!("amqp://guest:guest@[::1]:{}/", relay.addr.port()));
    env.start_worker().await;
    assert_eq!(relay.accepted(), 2);
}
