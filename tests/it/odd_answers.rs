//! Answers with a 2xx status that are not the JSON object that the platform documents.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    Answer, TestEnv,
    platform::{Call, success},
};

/// An answer with this body and headers.
fn answer(body: &[u8], headers: &[(&'static str, &str)]) -> Answer {
    let mut answer = Answer { body: body.to_vec(), ..Answer::status(200) };
    for (name, value) in headers {
        answer = answer.header(name, *value);
    }
    answer
}

fn utf16(text: &str, mark: &[u8]) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_le_bytes);
    mark.iter().copied().chain(units).collect()
}

#[tokio::test]
async fn answer_that_is_no_json_object_is_named_in_log_and_event() {
    const TOKEN: &str = r#"{"authorization":"t0ken-must-not-leak"}"#;
    const JSON: &str = "application/json";
    const PAGE: &[u8] = b"<!DOCTYPE html><title>must-not-leak</title>";
    let gzip = b"\x1f\x8b\x08\x00must-not-leak";
    let latin1 = b"{\"authorization\":\"t\xe9\"}";
    let answers = [
        (answer(gzip, &[("content-encoding", "gzip")]), "gzip (Content-Encoding)"),
        (answer(gzip, &[("content-type", JSON)]), "gzip, without a header"),
        (
            answer(b"\x8b\x03must-not-leak", &[("content-encoding", "br")]),
            "brotli (Content-Encoding)",
        ),
        (answer(b"x\x9cmust-not-leak", &[("content-encoding", "deflate")]), "deflate"),
        (answer(b"\x28\xb5\x2f\xfdmust", &[("content-encoding", "zstd")]), "zstd"),
        (answer(b"must-not-leak", &[("content-encoding", "aes128gcm")]), "unknown encoding"),
        (answer(&utf16(TOKEN, b"\xff\xfe"), &[]), "UTF-16"),
        (
            answer(&utf16(TOKEN, b""), &[("content-type", "application/json;charset=utf-16le")]),
            "UTF-16",
        ),
        (
            answer(latin1, &[("content-type", "application/json; charset=ISO-8859-1")]),
            "in the charset",
        ),
        (answer(latin1, &[("content-type", JSON)]), "not UTF-8"),
        (answer(PAGE, &[("content-type", "text/html")]), "HTML or XML page"),
        (answer(PAGE, &[]), "HANDOFF_IDV_URL"),
        (answer(b"", &[("content-type", JSON)]), "an empty body"),
        (answer(b" \r\n", &[]), "an empty body"),
        (Answer { body: vec![], ..Answer::status(204) }, "status 204 and no body"),
        (answer(format!("[{TOKEN}]").as_bytes(), &[]), "a JSON array"),
        (answer(b"\"must-not-leak\"", &[]), "a JSON string"),
        (answer(b"null", &[]), "a JSON number or literal"),
        (answer(&TOKEN.as_bytes()[..30], &[]), "malformed or cut off"),
        (
            answer(b"must-not-leak", &[("content-type", JSON)]),
            "although its Content-Type is a JSON type",
        ),
        (
            answer(b"must-not-leak", &[("content-type", "text/plain")]),
            "its Content-Type is not a JSON type",
        ),
        (answer(b"{\"error\":\"must-not-leak\"}", &[]), "without `authorization`"),
    ];
    join_all(answers.map(async |(answer, words)| {
        let script = move |_: &Call| answer.clone();
        let mut env = TestEnv::builder().platform(script).start().await;
        env.set("RETRY_BUDGET", "0s").set("RETRY_DELAYS", "10ms");
        let worker = env.start_worker().await;
        env.publish_request("r", "ann").await;
        let event = env.rabbitmq.next_event().await;
        assert_eq!(event.data()["reason"]["code"], "retries_exhausted", "{}", event.json());
        let message = event.data()["reason"]["message"].to_string();
        assert!(message.contains(words), "`{words}` is not in {message}");
        let error = worker.wait_for_finished(1).await["error"].to_string();
        assert!(error.contains(words), "`{words}` is not in {error}");
        let output = worker.stop_and_output().await;
        assert!(!output.contains("must-not-leak") && !message.contains("must-not-leak"));
    }))
    .await;
}

#[tokio::test]
async fn unusual_json_is_read_and_no_compression_is_asked_for() {
    let script = |call: &Call| {
        let mark = b"\xef\xbb\xbf".to_vec();
        let body = if call.is_token() {
            json!({ "authorization": "t" }).to_string()
        } else {
            json!({ "id": "5f" }).to_string()
        };
        let answer = Answer { body: [mark, body.into_bytes()].concat(), ..Answer::status(200) };
        // Whatever the headers say: it is JSON.
        answer
            .header("content-type", "text/html; charset=utf-16")
            .header("content-encoding", "gzip")
    };
    let mut env = TestEnv::builder().platform(script).start().await;
    let _worker = env.start_worker().await;
    env.publish_request("r", "ann").await;
    let event = env.rabbitmq.next_event().await;
    assert_eq!(event.data()["sessionId"], "5f", "{}", event.json());
    for call in env.platform.calls() {
        assert_eq!(call.header("accept-encoding"), "identity");
    }
    env.platform.set_script(success);
}
