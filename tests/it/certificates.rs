//! Certificates that rustls refuses: each server's is named, with the reason and the remedy.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use rcgen::{CustomExtension, ExtendedKeyUsagePurpose};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::support::{
    Authority, TempFile, TestEnv, TlsProxy, log_text,
    tls::{Identity, tls_url},
    within_timeout,
    worker::command,
};

const SERVERS: [(&str, &str); 3] =
    [("AMQP_URL", "rabbitmq"), ("REDIS_URL", "redis"), ("IDV_URL", "platform")];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Puts a front before each server, and asserts that the worker's log and the doctor's findings about
/// each contain `words`; the doctor's also `found`.
async fn assert_refused(
    port: impl AsyncFn(&str) -> u16,
    authorities: &str,
    words: &[&str],
    found: &[&str],
) {
    let mut env = TestEnv::start().await;
    env.settings.insert("SSL_CERT_FILE".into(), authorities.to_owned());
    env.settings.insert("SSL_CERT_DIR".into(), String::new());
    env.set("RETRY_BUDGET", "0s");
    let urls = SERVERS.map(|(name, _)| env.setting(name).to_owned());
    // The platform alone: RabbitMQ delivers the request.
    env.set("IDV_URL", &tls_url(&urls[2], port(&urls[2]).await));
    let worker = env.start_worker().await;
    env.publish_request("r", "ann").await;
    let error = worker.wait_for_finished(1).await["error"].to_string();
    assert!(error.contains("platform"), "{error}");
    assert_contains(&error, words);
    worker.kill().await;
    for n in 0..2 {
        env.set(SERVERS[n].0, &tls_url(&urls[n], port(&urls[n]).await));
    }
    let worker = crate::support::Worker::start(&env.settings);
    for (message, server) in
        [(log_text::NOT_CONSUMING, "RabbitMQ"), (log_text::REDIS_UNAVAILABLE, "Redis")]
    {
        // A line before this one may say that connecting took too long.
        let names = |line: &Value| {
            let line = line.to_string();
            line.contains(server) && words.iter().all(|word| line.contains(word))
        };
        worker.wait_for_log_with(message, names).await;
    }
    worker.kill().await;
    let output = command(&["doctor", "--json"], &env.settings).output();
    let output = within_timeout("its exit", output).await.unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    for (_, area) in SERVERS {
        let checks = report.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut checks = checks
            .filter(|check| check["area"] == area && check["name"] == "connection")
            .map(|check| check.to_string());
        let check = checks.next().unwrap_or_else(|| panic!("{area}: {report}"));
        assert!(check.contains("finding") && !check.contains("firewall"), "{check}");
        assert_contains(&check, &[words, found].concat());
    }
}

fn assert_contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
}

#[tokio::test]
async fn refused_certificate_is_explained_for_each_server() {
    let authority = Authority::new();
    let stored = TempFile::new(include_str!("support/certificates/authorities.pem"));
    let names = ["127.0.0.1"];
    let (own, stored) = (authority.certificate_file(), stored.path());
    let self_signed = Identity::self_signed_authority(&names);
    let (self_signed_file, _) = self_signed.pem();
    let cases = [
        (
            &self_signed,
            self_signed_file.path(),
            &["CA:TRUE", "basicConstraints=critical,CA:FALSE", "subjectAltName"][..],
        ),
        (&authority.issue(&[]), &own, &["no subjectAltName", "-addext subjectAltName"]),
        (
            &authority.issue(&["localhost"]),
            &own,
            &["DNS names only", "IP address", "subjectAltName=IP"],
        ),
        (&authority.issue(&["127.0.0.2"]), &own, &["for another name"]),
        (
            &authority.issue_with(&names, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            &own,
            &["not for servers", "serverAuth"],
        ),
        (
            &authority.issue_with(&names, |params| {
                let mut extension =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions = vec![extension];
            }),
            &own,
            &["critical extension"],
        ),
        (
            &authority.issue_with(&names, |params| {
                params.not_before = (SystemTime::now() + DAY).into();
            }),
            &own,
            &["not valid yet", "clock"],
        ),
        (
            &authority.issue_by_intermediate(&names, SystemTime::now() - DAY),
            &own,
            &["has expired", "intermediate"],
        ),
        (
            &Identity {
                chain: vec![],
                ..authority.issue_by_intermediate(&names, SystemTime::now() + DAY)
            },
            &own,
            &["without its intermediate certificates", "full chain"],
        ),
        (&Authority::new().issue(&names), &own, &["created again under its old name"]),
        (
            &Identity::stored(include_str!("support/certificates/sha1.pem")),
            stored,
            &["SHA-1", "SHA-256"],
        ),
        (
            &Identity::stored(include_str!("support/certificates/version1.pem")),
            stored,
            &["version 1", "-extfile"],
        ),
        (
            &Identity::stored(include_str!("support/certificates/small_rsa.pem")),
            stored,
            &["RSA of less than 2048 bits"],
        ),
    ];
    join_all(cases.map(async |(identity, authorities, words)| {
        let fronts = std::sync::Mutex::new(Vec::new());
        let port = async |url: &str| {
            let front = TlsProxy::to(url, identity).await;
            let port = front.port();
            fronts.lock().unwrap().push(front);
            port
        };
        assert_refused(port, authorities, words, &["It presents `", " issued by "]).await;
    }))
    .await;
}

/// A server that reads the first bytes of each client and answers with these.
async fn old_server(answer: &'static [u8]) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listening = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut hello = [0; 16 * 1024];
            if client.read(&mut hello).await.is_ok() {
                let _ = client.write_all(answer).await;
            }
        }
    });
    (port, listening)
}

#[tokio::test]
async fn server_without_tls_1_2_is_explained() {
    /// `protocol_version`, as OpenSSL answers.
    const ALERT: &[u8] = &[0x15, 3, 1, 0, 2, 2, 70];
    /// A `ServerHello` of TLS 1.0 with a random, no session id, and a cipher suite.
    const HELLO: &[u8] = &[
        0x16, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
        7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0xc0, 0x13, 0,
    ];
    let authority = Authority::new();
    join_all([ALERT, HELLO].map(async |answer| {
        let (port, listening) = old_server(answer).await;
        let words = ["neither TLS 1.2 nor TLS 1.3", "update it"];
        assert_refused(async |_: &str| port, &authority.certificate_file(), &words, &[]).await;
        listening.abort();
    }))
    .await;
}

#[tokio::test]
async fn authorities_that_cannot_be_read_are_named() {
    let mut env = TestEnv::start().await;
    let authority = Authority::new();
    let front = TlsProxy::to(&env.platform.url, &authority.issue(&["127.0.0.1"])).await;
    let url = tls_url(&env.platform.url, front.port());
    env.set("IDV_URL", &url);
    // The certificate that is needed is found, but not all that the operator relies on.
    env.settings.insert("SSL_CERT_DIR".into(), authority.certificate_dir());
    let empty = TempFile::new("");
    for (file, words) in
        [(empty.path(), "without a PEM certificate"), ("/no/such/file", "entity not found")]
    {
        env.settings.insert("SSL_CERT_FILE".into(), file.to_owned());
        let worker = env.start_worker().await;
        let line = worker.wait_for_log(log_text::AUTHORITIES_UNREADABLE).await["error"].to_string();
        assert!(line.contains("SSL_CERT_FILE: names a file") && line.contains(words), "{line}");
        worker.stop().await;
        let output = command(&["doctor", "--json"], &env.settings).output().await.unwrap();
        let report = String::from_utf8(output.stdout).unwrap();
        let found = report.lines().find(|line| line.contains("\"authorities\"")).unwrap();
        assert!(found.contains("finding") && found.contains(words), "{found}");
    }
}
