//! What strangers send, read and looked at: by `fuzz/`, and by the tests below.
//!
//! Each of these takes any bytes at all, and panics where a promise of the reader behind it is broken.

use std::time::SystemTime;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::{
    config::is_header_value,
    message::{Decoded, TraceContext, decode_request},
    platform::{answer, encode_component},
    retry::{MAX_RETRY_AFTER, parse_retry_after},
};

/// A message's body.
pub fn request(body: &[u8]) {
    for default_workflow in [None, Some("w")] {
        let Decoded { id, request } = decode_request(body, body.len(), default_workflow);
        assert!(id.is_none_or(|id| !id.as_str().is_empty() && id.short().len() <= 255));
        let (user, workflow) = match request {
            Ok(request) => {
                let metadata = request.metadata.for_user(&request.user_id);
                let sent = serde_json::to_string(&metadata).unwrap_or_default();
                // Some of it may be JSON and yet no text, such as half of a surrogate pair.
                assert!(serde_json::from_str::<IgnoredAny>(&sent).is_ok());
                let ours = format!("\"externalUserId\":{}}}", Value::from(&*request.user_id));
                assert!(sent.ends_with(&ours) && sent.len() <= 16 * 1024 + ours.len());
                (Some(request.user_id), Some(request.workflow_id))
            }
            Err(invalid) => {
                // It goes into logs, events and headers.
                assert!((1..1_000).contains(&invalid.message.len()));
                (invalid.user_id, invalid.workflow_id)
            }
        };
        if let Some(user) = user {
            assert!((1..=256).contains(&user.len()) && !user.chars().any(char::is_control));
        }
        assert!(workflow.is_none_or(|workflow| (1..=128).contains(&workflow.len())));
    }
    if let Some(most) = body.len().checked_sub(1) {
        assert!(decode_request(body, most, Some("w")).request.is_err());
    }
}

/// The body of an answer of the platform.
pub fn answer(body: &[u8]) {
    for value in [answer::parse_token(body), answer::parse_session_id(body)].into_iter().flatten() {
        assert!((1..=body.len()).contains(&value.len()));
        let escaped = encode_component(&value).to_string();
        assert!(escaped.bytes().all(|byte| byte.is_ascii_graphic()));
        let _ = is_header_value(&value);
    }
}

/// The value of a header, of a message or of an answer.
pub fn header(value: &[u8]) {
    let trace = TraceContext::from_headers(Some(value), Some(value));
    assert!(trace.parent().len() == 55 && is_header_value(trace.parent()));
    let parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::from_headers(Some(parent), Some(value));
    assert!(trace.state().is_none_or(|state| state.len() <= 512 && is_header_value(state)));
    if let Ok(text) = std::str::from_utf8(value) {
        let wait = parse_retry_after(text, SystemTime::now());
        assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// Pieces that JSON, and ours above all, is made of.
    const PIECES: [&str; 45] = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\\u0000",
        "\\ud800",
        "\\u0065",
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1e999",
        "0.1",
        " ",
        "\n",
        "\u{feff}",
        "\u{85}",
        "é",
        "\"userId\":",
        "\"workflowId\":",
        "\"metadata\":",
        "\"locale\":",
        "\"renew\":",
        "\"expiresAt\":",
        "\"externalUserId\":",
        "\"specversion\":",
        "\"1.0\"",
        "\"id\":",
        "\"source\":",
        "\"type\":",
        "\"verification.requested\"",
        "\"data\":",
        "\"authorization\":",
        "\"sessionId\":",
        "\"ann\"",
        "\"\"",
        "{}",
        "[]",
        "\"2030-01-31T12:00:00Z\"",
        "Wed, 21 Oct 2099 07:28:00 GMT",
    ];

    /// Bytes, or text of these pieces, or one of the corpus with a part replaced.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let text = vec(select(&PIECES[..]), 0..40).prop_map(|pieces| pieces.concat().into_bytes());
        let changed = (select(corpus("")), any::<prop::sample::Index>(), 0..9usize, text.clone());
        let changed = changed.prop_map(|(mut input, at, length, new)| {
            let at = at.index(input.len() + 1);
            let end = input.len().min(at + length);
            input.splice(at..end, new);
            input
        });
        prop_oneof![vec(any::<u8>(), 0..200), text, changed]
    }

    fn corpus(of: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(of);
        let mut inputs = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => inputs.extend(corpus(path.to_str().unwrap())),
                false => inputs.push(fs::read(path).unwrap()),
            }
        }
        inputs.sort();
        assert!(!inputs.is_empty());
        inputs
    }

    #[test]
    fn what_fuzzing_starts_from_is_read_as_it_should_be() {
        corpus("request").iter().for_each(|input| request(input));
        corpus("answer").iter().for_each(|input| answer(input));
        corpus("header").iter().for_each(|input| header(input));
        let read = |input: &Vec<u8>| decode_request(input, 65_536, None).request.is_ok();
        assert!(corpus("request").iter().any(read));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn whatever_strangers_send_no_reader_breaks_its_promises(input in input()) {
            request(&input);
            answer(&input);
            header(&input);
        }
    }
}
