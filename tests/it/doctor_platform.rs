//! What `handoff doctor` says about the platform's addresses, key and flow.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    doctor::doctor,
    support::{Answer, TestEnv, platform::API_KEY},
};

/// A server that answers each request with this status. Returns its URL.
async fn server(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4_096];
            let read = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
            // The doctor's first connection sends nothing.
            assert!(!head.contains("authorization"), "{head}");
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn health_of_both_hosts_is_asked_for_without_the_key() {
    let mut env = TestEnv::start().await;
    let report = doctor(&env, &[]).await;
    let health = report.check("platform", "health");
    assert_eq!(health["verdict"], "ok", "{health}");
    assert!(env.platform.calls().is_empty());

    for (status, verdict) in [("503 Unavailable", "finding"), ("404 Not Found", "hint")] {
        env.set("IDV_PUBLIC_URL", &server(status).await);
        let report = doctor(&env, &[]).await;
        let [api, public] = report.all("platform", "health")[..] else { panic!("two") };
        assert_eq!((&api["verdict"], &public["verdict"]), (&json!("ok"), &json!(verdict)));
        assert!(public["what"].as_str().unwrap().contains("HANDOFF_IDV_PUBLIC_URL"), "{public}");
    }
    // Perhaps people reach it, and this machine does not.
    env.set("IDV_PUBLIC_URL", "http://127.0.0.1:1");
    let report = doctor(&env, &[]).await;
    assert_eq!(report.all("platform", "health")[1]["verdict"], "hint");
}

#[tokio::test]
async fn address_that_people_cannot_use_and_key_without_a_scheme_are_hints() {
    let mut env = TestEnv::start().await;
    for url in [
        "https://idv.internal",
        "https://idv",
        "https://10.1.2.3",
        "https://100.64.0.1",
        "https://[fd00::1]",
        "https://idv.default.svc.cluster.local",
    ] {
        env.set("IDV_PUBLIC_URL", url);
        let report = doctor(&env, &[]).await;
        let check = report.check("settings", "public URL");
        assert_eq!(check["verdict"], "hint", "{url}");
        assert!(check["what"].as_str().unwrap().contains("not a public address"), "{check}");
    }
    env.set("IDV_PUBLIC_URL", "http://192.0.2.1").set("IDV_ALLOW_HTTP", "true");
    let report = doctor(&env, &[]).await;
    let check = report.check("settings", "public URL");
    assert!(check["cost"].as_str().unwrap().contains("camera"), "{check}");
    assert!(report.all("settings", "key scheme").is_empty(), "it has one");
    env.set("IDV_API_KEY", "k3y-must-not-leak").set("IDV_PUBLIC_URL", "https://192.0.2.1");
    let report = doctor(&env, &[]).await;
    assert_eq!(report.check("settings", "key scheme")["verdict"], "hint");
    assert_eq!(report.check("settings", "public URL")["verdict"], "ok");
}

#[tokio::test]
async fn probe_of_the_one_call_flow_makes_a_session_only_of_a_named_workflow() {
    let mut env = TestEnv::start().await;
    env.set("IDV_FLOW", "deeplink");
    let report = doctor(&env, &["--probe"]).await;
    let key = report.check("platform", "key")["what"].as_str().unwrap();
    assert!(key.contains("--workflow") && key.contains("makes a session"), "{key}");
    assert!(env.platform.calls().is_empty());

    let report = doctor(&env, &["--probe", "--workflow", "w 1"]).await;
    assert_eq!(report.check("platform", "key")["verdict"], "ok");
    let [call] = &env.platform.deeplink_calls()[..] else { panic!("one call") };
    assert_eq!(call.query.as_deref(), Some("workflowId=w%201"));
    assert_eq!(call.header("authorization"), API_KEY);
    assert_eq!(call.body["ttl"], 1);

    for (status, words) in [(403, "deeplink:write"), (422, "check the workflow")] {
        env.platform.set_script(move |_| Answer::status(status));
        let report = doctor(&env, &["--probe", "--workflow", "w"]).await;
        report.assert_finding("platform", "key", &[&status.to_string(), words]);
    }
}
