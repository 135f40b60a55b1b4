//! TLS to RabbitMQ, Redis and the platform, by certificates of an authority that the test makes.

use std::path::PathBuf;

use crate::support::{
    Authority, Node, TestEnv, TlsProxy, Worker, log_text,
    platform::API_KEY,
    redis, required_env,
    tls::{Identity, tls_url},
    within_timeout,
    worker::command,
};

/// The three that the worker speaks to, by their settings.
const SERVERS: [&str; 3] = ["AMQP_URL", "REDIS_URL", "IDV_URL"];

/// Where the worker finds a server, now that there is TLS in front of it.
async fn front(env: &mut TestEnv, server: &str, identity: &Identity) -> TlsProxy {
    let url = env.setting(server).to_owned();
    let front = TlsProxy::to(&url, identity).await;
    env.set(server, &tls_url(&url, front.port()));
    front
}

/// Tells the worker whom to trust, by file and by folder.
fn trust(env: &mut TestEnv, file: &str, folder: &str) {
    env.settings.insert("SSL_CERT_FILE".into(), file.to_owned());
    env.settings.insert("SSL_CERT_DIR".into(), folder.to_owned());
}

/// What the worker says of a server that it does not trust.
async fn complaint(worker: &Worker, server: &str) -> String {
    let text = |line: serde_json::Value, field: &str| line[field].as_str().unwrap().to_owned();
    match server {
        "AMQP_URL" => {
            let line = worker.wait_for_log(log_text::NOT_CONSUMING).await;
            text(line, "error")
        }
        "REDIS_URL" => {
            let said = log_text::REDIS_UNAVAILABLE;
            text(worker.wait_for_log(said).await, log_text::REDIS_CAUSE)
        }
        _ => text(worker.wait_for_log(log_text::REQUEST_FINISHED).await, "error"),
    }
}

/// Has the worker meet each server behind a certificate that will not do, one after the other.
async fn refused(trusted: bool, names: &[&str], because: &[&str]) {
    let authority = Authority::new();
    let identity = authority.issue(names);
    for server in SERVERS {
        let mut env = TestEnv::start().await;
        env.set("RETRY_BUDGET", "0s");
        let _front = front(&mut env, server, &identity).await;
        if trusted {
            trust(&mut env, &authority.certificate_file(), "");
        }
        let worker = Worker::start(&env.settings);
        if server != "AMQP_URL" {
            worker.wait_for_log(log_text::CONSUMING).await;
            env.publish_request("r-1", "ann").await;
        }
        let complaint = complaint(&worker, server).await;
        for word in because {
            assert!(complaint.contains(word), "{server}: {complaint}");
        }
        assert!(!complaint.contains("127.0.0.1"), "no URL: {complaint}");
        for secret in [API_KEY, "guest:guest", "nobody-may-see"] {
            assert!(!worker.output().contains(secret), "{server}");
        }
        match server {
            "REDIS_URL" => {
                assert_eq!(env.rabbitmq.next_event().await.routing_key, "handoff.ready");
                assert!(env.redis_entries().await.is_empty());
            }
            "IDV_URL" => assert!(env.platform.calls().is_empty()),
            _ => assert_eq!(worker.get("/readyz").await.0, 503),
        }
    }
}

#[tokio::test]
async fn an_authority_that_nobody_knows_is_refused_with_the_remedy() {
    refused(false, &["127.0.0.1"], &[log_text::UNTRUSTED_AUTHORITY, "SSL_CERT_FILE"]).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    refused(true, &["localhost", "other.example"], &[log_text::WRONG_CERTIFICATE_NAME]).await;
}

#[tokio::test]
async fn rabbitmq_redis_and_platform_are_reached_by_tls_with_a_private_authority() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let node = Node::redis().await;
    let mut env = TestEnv::start().await;
    let mut fronts = Vec::new();
    // In Docker, a server's ports were all chosen when it started.
    if docker() {
        fronts.push(front(&mut env, "AMQP_URL", &identity).await);
        fronts.push(front(&mut env, "REDIS_URL", &identity).await);
    } else {
        let (amqps, rediss) = (free_port(), free_port());
        tokio::join!(
            rabbitmq_speaks_tls(&identity, amqps),
            redis_speaks_tls(&node, &identity, rediss)
        );
        let amqp = env.setting("AMQP_URL").to_owned();
        env.set("AMQP_URL", &tls_url(&amqp, amqps)).set("REDIS_URL", &tls_url(&node.url, rediss));
    }
    fronts.push(front(&mut env, "IDV_URL", &identity).await);
    for server in SERVERS {
        let url = env.settings[&format!("HANDOFF_{server}")].replace("127.0.0.1", "localhost");
        env.set(server, &url);
    }
    let other = Authority::new();
    for (reused, file, folder) in [
        (false, authority.certificate_file(), String::new()),
        (true, other.certificate_file(), authority.certificate_dir()),
    ] {
        trust(&mut env, &file, &folder);
        let worker = env.start_worker().await;
        env.publish_request("r", "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{}", event.json());
        // Reused: so Redis has it.
        assert_eq!(event.data()["reused"], reused);
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_can_trust_nobody_says_so() {
    let mut env = TestEnv::start().await;
    trust(&mut env, "/no/such/file", "");
    let _front = front(&mut env, "IDV_URL", &Authority::new().issue(&["127.0.0.1"])).await;
    let output =
        within_timeout("the end", command(&["run"], &env.settings).output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("SSL_CERT_FILE"), "{said}");
    // Where TLS is for Redis alone, it is told of Redis; where there is none, nothing is missing.
    let (plain, redis) = (env.platform.url.clone(), env.setting("REDIS_URL").to_owned());
    env.set("IDV_URL", &plain).set("REDIS_URL", &tls_url(&redis, 1));
    let worker = env.start_worker().await;
    let complaint = complaint(&worker, "REDIS_URL").await;
    assert!(complaint.contains("SSL_CERT_FILE"), "{complaint}");
    env.set("REDIS_URL", &redis).start_worker().await;
}

/// The folder of the RabbitMQ that all tests share.
fn shared_rabbitmq() -> PathBuf {
    PathBuf::from(required_env("HANDOFF_SERVICES_DIR")).join("rabbitmq")
}

fn docker() -> bool {
    std::fs::read_to_string(shared_rabbitmq().join("settings")).unwrap().contains("engine=docker")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Has RabbitMQ itself listen for TLS, beside what it listens for already.
async fn rabbitmq_speaks_tls(identity: &Identity, port: u16) {
    let bytes =
        |der: &[u8]| format!("<<{}>>", der.iter().map(u8::to_string).collect::<Vec<_>>().join(","));
    let listen = format!(
        "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}, inet}}, \
         [{{cert, {}}}, {{key, {{'PrivateKeyInfo', {}}}}}], 1).",
        bytes(&identity.certificate),
        bytes(&identity.key),
    );
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/rabbitmq-node");
    let mut ctl = tokio::process::Command::new(script);
    let output =
        ctl.arg("ctl").arg(shared_rabbitmq()).args(["eval", &listen]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The same for Redis.
async fn redis_speaks_tls(node: &Node, identity: &Identity, port: u16) {
    let (certificate, key) = identity.pem();
    let mut redis = redis::connect(&node.url).await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("tls-auth-clients").arg("no").arg("tls-port").arg(port);
    set.arg("tls-cert-file").arg(certificate.path()).arg("tls-key-file").arg(key.path());
    set.query_async::<()>(&mut redis).await.unwrap();
}
