//! The proxy to the platform: each kind that the documentation names, and each way to fail.

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::{
    Authority, ForwardProxy, ProxyAnswer, ProxyKind, TestEnv, TlsProxy, Worker, log_text,
    platform::API_KEY, tls::Identity, within_timeout, worker::command,
};

use ProxyAnswer::{Close, Connect, Refuse, Silent};
use ProxyKind::{Http, Https, Socks5};

/// A host that only proxies resolve.
const HOST: &str = "platform.test";
/// An address that is this machine's, and not a loopback address, which a proxy is not asked for.
const ADDRESS: &str = "0.0.0.0";
const USER: &str = "pr@xy-user";
const PASSWORD: &str = "pa:ss/w%rd-must-not-leak é";
const CREDENTIALS: Option<(&str, &str)> = Some((USER, PASSWORD));
const USER_INFO: &str = "pr%40xy-user:pa%3Ass%2Fw%25rd-must-not-leak%20%C3%A9@";

/// An environment whose platform is `https` on `host`, and the identity of platform and proxies.
struct Set {
    env: TestEnv,
    identity: Identity,
    platform: TlsProxy,
    _authority: Authority,
}

impl Set {
    async fn new(host: &str) -> Self {
        let mut env = TestEnv::start().await;
        let authority = Authority::new();
        let identity = authority.issue(&[HOST, ADDRESS, "127.0.0.1"]);
        let platform = TlsProxy::to(&env.platform.url, &identity).await;
        env.set("IDV_URL", &format!("https://{host}:{}", platform.port()));
        env.set("IDV_TIMEOUT", "4s").set("RETRY_BUDGET", "0s");
        env.settings.insert("SSL_CERT_FILE".into(), authority.certificate_file());
        env.settings.insert("SSL_CERT_DIR".into(), String::new());
        Self { env, identity, platform, _authority: authority }
    }

    async fn proxy(
        &self,
        kind: ProxyKind,
        answer: ProxyAnswer,
        credentials: Option<(&'static str, &'static str)>,
    ) -> ForwardProxy {
        ForwardProxy::start(kind, answer, credentials, &self.identity).await
    }

    fn set(&mut self, variable: &str, value: &str) {
        self.env.settings.insert(variable.to_owned(), value.to_owned());
    }

    /// The findings and hints of the doctor's area `platform`, each as one text.
    async fn doctor(&self, flags: &[&str]) -> Vec<String> {
        let arguments = [&["doctor", "--json"], flags].concat();
        let output = command(&arguments, &self.env.settings).output();
        let output = within_timeout("its exit", output).await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_no_secret(&text);
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|check| check["area"] == "platform" && check["verdict"] == "finding")
            .map(|check| format!("{}: {} {}", check["name"], check["what"], check["remedy"]))
            .collect()
    }

    /// The error that a worker logs about its first request, which ends without a link.
    async fn logged_error(&self) -> String {
        let worker = self.env.start_worker().await;
        self.env.publish_request("r", "ann").await;
        let line = worker.wait_for_finished(1).await;
        let output = worker.stop_and_output().await;
        assert_no_secret(&output);
        line["error"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
    }
}

fn assert_no_secret(text: &str) {
    for secret in [API_KEY, USER, PASSWORD, USER_INFO, "must-not-leak"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn every_kind_of_proxy_carries_the_calls() {
    let kinds = [
        ("HTTPS_PROXY", "http", Http, None, HOST),
        ("https_proxy", "http", Http, CREDENTIALS, HOST),
        ("ALL_PROXY", "https", Https, None, HOST),
        ("HTTPS_PROXY", "https", Https, CREDENTIALS, HOST),
        ("all_proxy", "socks5h", Socks5, None, HOST),
        ("ALL_PROXY", "socks5h", Socks5, CREDENTIALS, HOST),
        ("ALL_PROXY", "socks5", Socks5, CREDENTIALS, ADDRESS),
    ];
    join_all(kinds.map(async |(variable, scheme, kind, credentials, host)| {
        let mut set = Set::new(host).await;
        let proxy = set.proxy(kind, Connect, credentials).await;
        let user_info = if credentials.is_some() { USER_INFO } else { "" };
        set.set(variable, &format!("{scheme}://{user_info}127.0.0.1:{}", proxy.port));
        let findings = set.doctor(&["--probe"]).await;
        assert!(findings.is_empty(), "{scheme}: {findings:?}");
        let worker = set.env.start_worker().await;
        set.env.publish_request("r", "ann").await;
        let event = set.env.rabbitmq.next_event().await;
        assert_eq!(event.routing_key, "handoff.ready", "{scheme}: {}", event.json());
        let target = format!("{host}:{}", set.platform.port());
        let targets = proxy.targets();
        assert!(targets.len() >= 3 && targets.iter().all(|one| *one == target), "{targets:?}");
        assert_no_secret(&worker.stop_and_output().await);
    }))
    .await;
}

#[tokio::test]
async fn proxy_that_fails_is_named_with_the_remedy() {
    // Kind, what it does, the credentials that it wants, the scheme and user info that it is given,
    // words of the worker's error, words of the doctor's.
    type Case = (
        ProxyKind,
        ProxyAnswer,
        Option<(&'static str, &'static str)>,
        &'static str,
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: [Case; 13] = [
        (
            Http,
            Refuse(403),
            None,
            "http",
            "",
            &["no status 200", "rules"],
            &["status 403", "NO_PROXY"],
        ),
        (
            Http,
            Refuse(502),
            None,
            "http",
            "",
            &["can reach the platform"],
            &["status 502", "resolved"],
        ),
        (
            Http,
            Connect,
            CREDENTIALS,
            "http",
            "",
            &["requires a user"],
            &["status 407", "user:password"],
        ),
        (
            Https,
            Connect,
            CREDENTIALS,
            "https",
            "pr:must-not-leak@",
            &["refused its user"],
            &["status 407", "check user"],
        ),
        (Http, Close, None, "http", "", &["closed the connection"], &["closes the connection"]),
        (Http, Silent, None, "http", "", &["in time"], &["within 5 s"]),
        (Socks5, Silent, None, "socks5h", "", &["in time"], &["within 5 s"]),
        (
            Socks5,
            Refuse(2),
            None,
            "socks5h",
            "",
            &["connection not allowed"],
            &["SOCKS5 reply 2", "rules"],
        ),
        (Socks5, Refuse(4), None, "socks5h", "", &["host unreachable"], &["host unreachable"]),
        (
            Socks5,
            Connect,
            CREDENTIALS,
            "socks5h",
            "",
            &["requires a user"],
            &["requires authentication"],
        ),
        (
            Socks5,
            Connect,
            CREDENTIALS,
            "socks5h",
            "pr:must-not-leak@",
            &["refused its user"],
            &["refuses its user"],
        ),
        (Socks5, Connect, None, "socks5", "", &["socks5h"], &["cannot resolve", "socks5h"]),
        (Socks5, Connect, None, "http", "", &["check the scheme"], &["of the scheme http"]),
    ];
    join_all(cases.map(async |(kind, answer, wanted, scheme, user_info, logged, found)| {
        let mut set = Set::new(HOST).await;
        let proxy = set.proxy(kind, answer, wanted).await;
        set.set("ALL_PROXY", &format!("{scheme}://{user_info}127.0.0.1:{}", proxy.port));
        let name = format!("{scheme}://127.0.0.1:{} (ALL_PROXY)", proxy.port);
        let error = set.logged_error().await;
        for words in [&[name.as_str()], logged].concat() {
            assert!(error.contains(words), "{kind:?} {answer:?}: `{words}` is not in {error}");
        }
        let findings = set.doctor(&["--probe"]).await.join("\n");
        for words in [&[name.as_str()], found].concat() {
            assert!(
                findings.contains(words),
                "{kind:?} {answer:?}: `{words}` is not in {findings}"
            );
        }
        assert!(!findings.contains("Ephemeral Devices"), "{findings}");
        assert!(set.env.platform.calls().is_empty());
    }))
    .await;
}

#[tokio::test]
async fn proxy_that_cannot_be_reached_is_named_with_the_reason() {
    let other = Authority::new();
    let cases = [
        ("http://127.0.0.1:1", &["connection refused"][..], &["connection refused"][..]),
        (
            "socks5h://127.0.0.1:1",
            &["cannot be reached", "`handoff doctor`"],
            &["connection refused"],
        ),
        ("http://no-such-proxy.invalid:3128", &["the host was not found"], &["not found"]),
        (
            "https://127.0.0.1:0",
            &["its certificate", "SSL_CERT_FILE"],
            &["its certificate", "SSL_CERT_FILE"],
        ),
    ];
    join_all(cases.map(async |(url, logged, found)| {
        let mut set = Set::new(HOST).await;
        let identity = other.issue(&["127.0.0.1"]);
        let untrusted = ForwardProxy::start(Https, Connect, None, &identity).await;
        let url = url.replace(":0", &format!(":{}", untrusted.port));
        set.set("HTTPS_PROXY", &url);
        let error = set.logged_error().await;
        for words in [&[url.as_str(), "(HTTPS_PROXY)"], logged].concat() {
            assert!(error.contains(words), "`{words}` is not in {error}");
        }
        let findings = set.doctor(&[]).await.join("\n");
        for words in [&[url.as_str(), "(HTTPS_PROXY)"], found].concat() {
            assert!(findings.contains(words), "`{words}` is not in {findings}");
        }
    }))
    .await;
}

#[tokio::test]
async fn host_in_no_proxy_is_reached_directly_by_worker_and_doctor() {
    let mut set = Set::new(ADDRESS).await;
    set.set("ALL_PROXY", "socks5h://127.0.0.1:1");
    set.set("NO_PROXY", "other.example,0.0.0.0:1");
    let findings = set.doctor(&[]).await.join("\n");
    assert!(findings.contains("socks5h://127.0.0.1:1 (ALL_PROXY)"), "{findings}");
    let port = set.platform.port();
    for list in [format!("other.example,{ADDRESS}:{port}"), "0.0.0.0/8".into(), "*".into()] {
        set.set("NO_PROXY", &list);
        let findings = set.doctor(&["--probe"]).await;
        assert!(findings.is_empty(), "{list}: {findings:?}");
        let worker = set.env.start_worker().await;
        set.env.publish_request("r", &list).await;
        assert_eq!(set.env.rabbitmq.next_event().await.routing_key, "handoff.ready", "{list}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn proxy_url_that_cannot_be_used_stops_the_start_by_name() {
    let mut set = Set::new(HOST).await;
    for value in ["socks9://must-not-leak", "http://must-not-leak:port", "must not leak"] {
        set.set("ALL_PROXY", value);
        for arguments in [&["run"][..], &["doctor"]] {
            let output = within_timeout("its exit", command(arguments, &set.env.settings).output());
            let output = output.await.unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.contains("ALL_PROXY: must be a proxy URL"), "{stderr}");
            assert!(stderr.contains("socks5h") && !stderr.contains("leak"), "{stderr}");
        }
    }
    // A proxy that is not used may be anything.
    set.set("NO_PROXY", HOST);
    Worker::start(&set.env.settings).wait_for_log(log_text::CONSUMING).await;
}

#[tokio::test]
async fn proxy_of_the_trace_collector_that_cannot_be_used_is_named() {
    let mut env = TestEnv::start().await;
    let collector = "https://collector.test:4318";
    env.settings.insert("OTEL_EXPORTER_OTLP_ENDPOINT".into(), collector.into());
    env.settings.insert("ALL_PROXY".into(), "socks9://must-not-leak".into());
    let worker = env.start_worker().await;
    let line = worker.wait_for_log(log_text::TRACES_DISABLED).await.to_string();
    assert!(line.contains("ALL_PROXY: must be a proxy URL") && !line.contains("leak"), "{line}");
}
