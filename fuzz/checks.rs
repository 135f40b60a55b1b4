//! Fuzz targets: the parsers of untrusted input, with assertions on what they return.
//!
//! Part of the `handoff` library when it is built for tests or by cargo-fuzz, since most of the parsers
//! are private. `fuzz_targets` runs the targets under libFuzzer, the tests below under proptest. Each
//! takes any bytes, and panics if a parser breaks a rule or disagrees with a second parser.

use std::time::SystemTime;

use secrecy::ExposeSecret;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use url::Url;

use crate::{
    config::is_header_value,
    message::{Decoded, Request, TraceContext, decode_request},
    platform::{Links, answer, deeplink},
    retry::{MAX_RETRY_AFTER, parse_retry_after},
};

/// Decodes the body of a request.
pub fn request(body: &[u8]) {
    for default_workflow in [None, Some("w")] {
        let Decoded { id, request, .. } = decode_request(body, body.len(), default_workflow);
        assert!(id.is_none_or(|id| !id.as_str().is_empty() && id.short().len() <= 255));
        let (user, workflow) = match request {
            Ok(request) => {
                check_metadata(&request);
                compare_with_serde_json(body, &request, default_workflow);
                (Some(request.user_id), Some(request.workflow_id))
            }
            Err(invalid) => {
                // It goes into logs, events and headers.
                assert!((1..1_000).contains(&invalid.message.len()), "{}", invalid.message);
                (invalid.user_id, invalid.workflow_id)
            }
        };
        if let Some(user) = user {
            assert!((1..=256).contains(&user.len()) && !user.chars().any(char::is_control));
        }
        assert!(workflow.is_none_or(|workflow| (1..=128).contains(&workflow.len())));
    }
    if let Some(limit) = body.len().checked_sub(1) {
        assert!(decode_request(body, limit, Some("w")).request.is_err());
    }
}

fn sent_metadata(request: &Request) -> String {
    serde_json::to_string(&request.metadata()).unwrap_or_default()
}

fn check_metadata(request: &Request) {
    let sent = sent_metadata(request);
    // `IgnoredAny` and not `Value`, which refuses half a surrogate pair.
    assert!(serde_json::from_str::<IgnoredAny>(&sent).is_ok(), "{sent}");
    let user = format!("\"externalUserId\":{}}}", Value::from(&*request.user_id));
    assert!(sent.ends_with(&user) && sent.len() <= 16 * 1024 + user.len(), "{sent}");
}

fn compare_with_serde_json(body: &[u8], request: &Request, default_workflow: Option<&str>) {
    // `Value` refuses some bodies that are valid requests, such as one with a number above 1e308.
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
    let data = if body["specversion"].is_null() { &body } else { &body["data"] };
    let text = |key: &str| data[key].as_str();
    assert_eq!(text("userId"), Some(&*request.user_id));
    assert_eq!(text("workflowId").or(default_workflow), Some(&*request.workflow_id));
    assert_eq!(text("locale"), request.locale.as_deref());
    assert_eq!(data["renew"].as_bool().unwrap_or(false), request.renew);
    assert_eq!(text("expiresAt").is_some(), request.expires_at.is_some());
    let without_user = |metadata: &Value| {
        let mut metadata: Map<_, _> = metadata.as_object().cloned().unwrap_or_default();
        metadata.remove("externalUserId");
        metadata
    };
    let sent = serde_json::from_str(&sent_metadata(request)).unwrap_or_default();
    assert_eq!(without_user(&sent), without_user(&data["metadata"]));
}

/// Parses the body of a platform answer.
pub fn answer(body: &[u8]) {
    let parsed = serde_json::from_slice::<Value>(body).unwrap_or_default();
    if let Ok(token) = answer::parse_token(body) {
        assert!((1..=body.len()).contains(&token.len()));
        assert!(parsed.is_null() || parsed["authorization"] == *token, "{token:?}");
        check_link(&token, "s");
        let fits_a_header =
            token.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
                && !token.starts_with([' ', '\t'])
                && !token.ends_with([' ', '\t']);
        assert_eq!(is_header_value(&token), fits_a_header, "{token:?}");
    }
    if let Ok(session_id) = answer::parse_session_id(body) {
        assert!((1..=body.len()).contains(&session_id.len()));
        let is_id = |id: &Value| match id {
            // `Value` rounds long numbers, so compare with the text.
            Value::Number(_) => String::from_utf8_lossy(body).contains(&session_id),
            id => *id == *session_id,
        };
        let ids = [&parsed["id"], &parsed["sessionId"]];
        assert!(parsed.is_null() || ids.into_iter().any(is_id), "{session_id:?}");
        check_link("t", &session_id);
    }
    if let Ok(link) = deeplink::parse(body) {
        let url = link.url.expose_secret();
        assert!(parsed.is_null() || parsed["url"] == *url);
        let browsers = Url::parse(url).ok().filter(Url::has_host);
        let is_anonymous = |url: &Url| url.username().is_empty() && url.password().is_none();
        assert!(browsers.as_ref().is_some_and(is_anonymous));
        let of_browsers = browsers.as_ref().and_then(|url| {
            let mut ids = url.query_pairs().filter(|(name, _)| name == "sessionId");
            ids.next().filter(|_| ids.next().is_none())
        });
        // Browsers' own query parser takes a plus sign for a space.
        let of_browsers = of_browsers.map(|(_, id)| id.replace(' ', "+"));
        assert_eq!(of_browsers, Some(link.session_id.replace(' ', "+")));
    }
}

/// Checks that a browser finds the token and the session id in the link.
fn check_link(token: &str, session_id: &str) {
    let query = |url: &Url, key: &str| {
        url.query_pairs().find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
    };
    let Ok(public) = Url::parse("https://idv.example.com") else { return };
    let link = Url::parse(&Links::of_token(&public, token, session_id).url).ok();
    let inner = link.and_then(|link| Url::parse(&query(&link, "url")?).ok());
    let found = inner.map(|inner| [query(&inner, "authorization"), query(&inner, "sessionId")]);
    assert_eq!(found, Some([Some(token.to_owned()), Some(session_id.to_owned())]));
}

/// Parses the value of a message header or of an answer's header.
pub fn header(value: &[u8]) {
    let trace = TraceContext::from_headers(Some(value), Some(value));
    assert!(trace.parent().len() == 55 && is_header_value(trace.parent()));
    let parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::from_headers(Some(parent), Some(value));
    assert_eq!(trace.parent().as_bytes(), parent);
    assert!(trace.state().is_none_or(|state| state.len() <= 512 && is_header_value(state)));
    if let Ok(text) = std::str::from_utf8(value) {
        let wait = parse_retry_after(text, SystemTime::now());
        assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER));
        if let Ok(seconds) = text.trim().parse::<u32>()
            && !text.trim().starts_with('+')
        {
            let seconds = std::time::Duration::from_secs(seconds.into());
            assert_eq!(wait, Some(seconds.min(MAX_RETRY_AFTER)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// Pieces of JSON, of requests and of headers.
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

    const REQUEST_KEYS: [&str; 6] =
        ["workflowId", "metadata", "locale", "renew", "expiresAt", "other"];
    const ANSWER_KEYS: [&str; 3] = ["authorization", "id", "sessionId"];
    const VALUES: [&str; 20] = [
        r#""ann""#,
        r#""""#,
        r#"" ann""#,
        r#""ann ""#,
        r#""a\tb""#,
        r#""\u0000""#,
        r#""\u0085""#,
        r#""\ud800""#,
        r#""é a&b=c+d%20/?#""#,
        r#""2030-01-31T12:00:00Z""#,
        "null",
        "true",
        "false",
        "7",
        "1.50",
        "12345678901234567890123",
        "1e999",
        "[]",
        "{}",
        r#"{"a":1.50,"externalUserId":"x","b":{"externalUserId":1}}"#,
    ];

    /// An object with `first` and other keys, some of them repeated.
    fn object(
        first: &'static str,
        keys: &'static [&'static str],
    ) -> impl Strategy<Value = Vec<u8>> {
        let rest = vec((select(keys), select(&VALUES[..])), 0..5);
        (select(&VALUES[..]), rest).prop_map(move |(value, rest)| {
            let entries = [(first, value)].into_iter().chain(rest);
            let entries: Vec<_> =
                entries.map(|(key, value)| format!("\"{key}\":{value}")).collect();
            format!("{{{}}}", entries.join(",")).into_bytes()
        })
    }

    /// Random bytes, random pieces, random objects, or an input of the corpus with a part replaced.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let text = vec(select(&PIECES[..]), 0..40).prop_map(|pieces| pieces.concat().into_bytes());
        let changed = (select(corpus("")), any::<prop::sample::Index>(), 0..9usize, text.clone());
        let changed = changed.prop_map(|(mut input, at, length, new)| {
            let at = at.index(input.len() + 1);
            let end = input.len().min(at + length);
            input.splice(at..end, new);
            input
        });
        prop_oneof![
            vec(any::<u8>(), 0..200),
            text,
            object("userId", &REQUEST_KEYS),
            object("id", &ANSWER_KEYS),
            changed,
        ]
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                inputs.extend(corpus(path.to_str().unwrap()));
            } else {
                inputs.push(fs::read(path).unwrap());
            }
        }
        inputs.sort();
        assert!(!inputs.is_empty());
        inputs
    }

    #[test]
    fn corpus_passes_and_contains_a_valid_request() {
        corpus("request").iter().for_each(|input| request(input));
        corpus("answer").iter().for_each(|input| answer(input));
        corpus("header").iter().for_each(|input| header(input));
        let is_valid = |input: &Vec<u8>| decode_request(input, 65_536, None).request.is_ok();
        assert!(corpus("request").iter().any(is_valid));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn random_input_passes(input in input()) {
            request(&input);
            answer(&input);
            header(&input);
        }
    }
}
