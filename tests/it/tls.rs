//! TLS to RabbitMQ, Redis and the platform, with certificates of a private authority.

use serde_json::Value;

use crate::support::{
    Authority, Node, TempFile, TestEnv, TlsProxy, Worker, log_text,
    platform::API_KEY,
    tls::{Identity, free_port, listen_for_amqps, tls_url},
    within_timeout,
    worker::command,
};

/// The settings with the URLs of the worker's three servers.
const SERVERS: [&str; 3] = ["AMQP_URL", "REDIS_URL", "IDV_URL"];

/// Puts TLS in front of a server, and has the worker connect to that.
async fn add_tls(env: &mut TestEnv, server: &str, identity: &Identity) -> TlsProxy {
    let url = env.setting(server).to_owned();
    let proxy = TlsProxy::to(&url, identity).await;
    env.set(server, &tls_url(&url, proxy.port()));
    proxy
}

/// Sets which authorities the worker trusts, by file and by directory.
fn trust(env: &mut TestEnv, file: &str, dir: &str) {
    env.settings.insert("SSL_CERT_FILE".into(), file.to_owned());
    env.settings.insert("SSL_CERT_DIR".into(), dir.to_owned());
}

/// Waits until the worker logs these words about a server that it does not trust, and returns the error.
async fn logged_error(worker: &Worker, server: &str, words: &[&str]) -> String {
    let message = match server {
        "AMQP_URL" => log_text::NOT_CONSUMING,
        "REDIS_URL" => log_text::REDIS_UNAVAILABLE,
        _ => log_text::REQUEST_FINISHED,
    };
    let error = |line: &Value| line["error"].as_str().unwrap().to_owned();
    // A line before this one may say that connecting took too long.
    let is_explained = |line: &Value| words.iter().all(|word| error(line).contains(word));
    error(&worker.wait_for_log_with(message, is_explained).await)
}

/// Asserts that the worker refuses each server in turn behind a certificate for these names, with
/// an error that contains `words`.
async fn assert_refused(is_authority_trusted: bool, names: &[&str], words: &[&str]) {
    let authority = Authority::new();
    let identity = authority.issue(names);
    for server in SERVERS {
        let mut env = TestEnv::start().await;
        env.set("RETRY_BUDGET", "0s");
        let _proxy = add_tls(&mut env, server, &identity).await;
        if is_authority_trusted {
            trust(&mut env, &authority.certificate_file(), "");
        }
        let worker = Worker::start(&env.settings);
        if server != "AMQP_URL" {
            worker.wait_for_log(log_text::CONSUMING).await;
            env.publish_request("r-1", "ann").await;
        }
        let error = logged_error(&worker, server, words).await;
        assert!(!error.contains("127.0.0.1"), "no URL: {error}");
        for secret in [API_KEY, "guest:guest", "must-not-leak"] {
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
async fn certificate_of_an_untrusted_authority_is_refused_with_the_remedy() {
    assert_refused(false, &["127.0.0.1"], &[log_text::UNTRUSTED_AUTHORITY, "SSL_CERT_FILE"]).await;
}

#[tokio::test]
async fn certificate_for_another_name_is_refused() {
    assert_refused(true, &["localhost", "other.example"], &[log_text::WRONG_CERTIFICATE_NAME])
        .await;
}

#[tokio::test]
async fn servers_are_reached_over_tls_with_a_private_authority() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"]);
    let mut redis_node = None;
    let mut env = TestEnv::start().await;
    let mut proxies = Vec::new();
    // Docker publishes a server's ports when it starts: a port opened later is out of reach.
    if Node::shared_rabbitmq().is_in_docker() {
        proxies.push(add_tls(&mut env, "AMQP_URL", &identity).await);
        proxies.push(add_tls(&mut env, "REDIS_URL", &identity).await);
    } else {
        let rabbitmq = Node::shared_rabbitmq();
        let rediss = free_port();
        let (amqps, node) = tokio::join!(
            listen_for_amqps(&rabbitmq, &identity, None),
            redis_with_tls(&identity, rediss)
        );
        let amqp = env.setting("AMQP_URL").to_owned();
        env.set("AMQP_URL", &tls_url(&amqp, amqps)).set("REDIS_URL", &tls_url(&node.url, rediss));
        redis_node = Some(node);
    }
    proxies.push(add_tls(&mut env, "IDV_URL", &identity).await);
    for server in SERVERS {
        let url = env.setting(server).replace("127.0.0.1", "localhost");
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
        // Reuse proves that the first worker has reached Redis.
        assert_eq!(event.data()["reused"], reused);
        worker.stop().await;
    }
    drop(redis_node);
}

#[tokio::test]
async fn missing_trust_store_is_reported_by_name() {
    let mut env = TestEnv::start().await;
    trust(&mut env, "/no/such/file", "");
    let _proxy = add_tls(&mut env, "IDV_URL", &Authority::new().issue(&["127.0.0.1"])).await;
    let output =
        within_timeout("its exit", command(&["run"], &env.settings).output()).await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("SSL_CERT_FILE"), "{stderr}");
    // With TLS to Redis alone, the worker runs and logs it; without TLS, nothing is missing.
    let plain = env.platform.url.clone();
    let redis = env.setting("REDIS_URL").to_owned();
    env.set("IDV_URL", &plain).set("REDIS_URL", &tls_url(&redis, 1));
    let worker = env.start_worker().await;
    logged_error(&worker, "REDIS_URL", &["SSL_CERT_FILE"]).await;
    env.set("REDIS_URL", &redis).start_worker().await;
    // With TLS to RabbitMQ, whatever makes the store unusable.
    let _front = add_tls(&mut env, "AMQP_URL", &Authority::new().issue(&["127.0.0.1"])).await;
    let empty = TempFile::new("");
    for file in ["/no/such/file", "/root", empty.path()] {
        trust(&mut env, file, "");
        let worker = Worker::start(&env.settings);
        logged_error(&worker, "AMQP_URL", &["SSL_CERT_FILE"]).await;
    }
}

/// A Redis that also listens for TLS. Redis 6.0 takes the port only when it starts.
async fn redis_with_tls(identity: &Identity, port: u16) -> Node {
    let (certificate, key) = identity.pem();
    let port = port.to_string();
    let options = ["--tls-auth-clients", "no", "--tls-port", &port, "--tls-cert-file"];
    let files = [certificate.path(), "--tls-key-file", key.path()];
    Node::redis_with(&[&options[..], &files].concat()).await
}
