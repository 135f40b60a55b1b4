//! `handoff healthcheck`, and where the worker serves what it asks for.

use std::net::SocketAddr;

use crate::support::{
    TestEnv, Worker, log_text,
    worker::{Settings, run},
};

/// Where the worker serves its probes.
async fn probes(worker: &Worker) -> SocketAddr {
    let line = worker.wait_for_log(log_text::SERVING_HTTP).await;
    line["addr"].as_str().unwrap().parse().unwrap()
}

fn only(name: &str, value: &str) -> Settings {
    Settings::from([(format!("HANDOFF_{name}"), value.to_owned())])
}

#[tokio::test]
async fn healthcheck_reports_what_the_probes_say() {
    let mut env = TestEnv::start().await;
    // All addresses of both families, as the image sets it.
    env.set("HTTP_ADDR", "[::]:0");
    let worker = env.start_worker().await;
    let port = probes(&worker).await.port();
    for listens_at in ["[::]", "0.0.0.0", "127.0.0.1", "[::1]"] {
        let mut settings = only("HTTP_ADDR", &format!("{listens_at}:{port}"));
        // A proxy of the container must not be asked for the container itself.
        settings.insert("HTTP_PROXY".into(), "http://127.0.0.1:1".into());
        for path in [&["healthcheck"][..], &["healthcheck", "/readyz"]] {
            let output = run(path, &settings).await;
            let page = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && page.starts_with('{'), "{listens_at}: {output:?}");
        }
    }
    let output =
        run(&["healthcheck", "/elsewhere"], &only("HTTP_ADDR", &format!("[::]:{port}"))).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("answers with status 404"), "{error}");
    worker.stop().await;

    let output = run(&["healthcheck"], &only("HTTP_ADDR", &format!("[::]:{port}"))).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("cannot ask http://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn healthcheck_fails_with_the_page_of_a_worker_that_is_not_ready() {
    let mut env = TestEnv::start().await;
    env.set("AMQP_URL", "amqp://127.0.0.1:1");
    let worker = Worker::start(&env.settings);
    worker.wait_for_log(log_text::NOT_CONSUMING).await;
    let address = probes(&worker).await.to_string();
    let output = run(&["healthcheck", "/readyz"], &only("HTTP_ADDR", &address)).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("status 503") && error.contains("broker"), "{error}");
    assert!(run(&["healthcheck"], &only("HTTP_ADDR", &address)).await.status.success());
    let output = run(&["healthcheck", "readyz"], &only("HTTP_ADDR", &address)).await;
    assert_eq!(output.status.code(), Some(2), "no path");
    worker.stop().await;
}
