//! Finds secrets in texts, however they are encoded.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use percent_encoding::percent_decode_str;

/// Part of every secret in these tests: keys, tokens, passwords, user ids and metadata.
pub const MARK: &str = "must-not-leak";
/// The only secret without the mark, because it is base64.
pub const CACHE_KEY: &str = "bm9ib2R5LW1heS1zZWUtMDEyMzQ1Njc4OWFiY2RlZjA=";

pub fn assert_no_secret(what: &str, text: &str) {
    for (form, text) in readings(text) {
        let text = text.to_lowercase();
        for secret in [MARK, &CACHE_KEY.to_lowercase(), "/capture", "/mobile?"] {
            if let Some(at) = text.find(secret) {
                let from = text.floor_char_boundary(at.saturating_sub(200));
                let to = text.ceil_char_boundary(at + 60);
                panic!("{what} contains `{secret}` ({form}): …{}…", &text[from..to]);
            }
        }
    }
    for encoded in encoded_marks() {
        assert!(!text.contains(&encoded), "{what} contains `{MARK}` as `{encoded}`");
    }
}

/// A text as it is, and with the escapes undone that URLs and JSON use.
fn readings(text: &str) -> [(&'static str, String); 4] {
    let percent = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let unescaped = without_json_escapes(text);
    [
        ("verbatim", text.to_owned()),
        ("percent-encoded", percent(text)),
        ("percent-encoded twice", percent(&percent(text))),
        ("escaped as in JSON", percent(&unescaped)),
    ]
}

/// Replaces `\u002d` by `-`, `\/` by `/`, and so on, however often they are nested.
fn without_json_escapes(text: &str) -> String {
    let mut unescaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        unescaped.push_str(before);
        let code = after.strip_prefix('u').and_then(|code| code.get(..4));
        let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                unescaped.push(c);
                rest = &after[5..];
            }
            None => rest = after,
        }
    }
    unescaped + rest
}

/// The mark in base64, wherever it stands in what was encoded, and in hexadecimal.
fn encoded_marks() -> Vec<String> {
    let mut marks = Vec::new();
    for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        for offset in 0..3 {
            let encoded = engine.encode(format!("{}{MARK}", "x".repeat(offset)));
            // The first and last characters also depend on the neighbours.
            marks.push(encoded[(offset * 8).div_ceil(6)..encoded.len() - 1].to_owned());
        }
    }
    let hex = |format: fn(u8) -> String| MARK.bytes().map(format).collect();
    marks.push(hex(|byte| format!("{byte:02x}")));
    marks.push(hex(|byte| format!("{byte:02X}")));
    marks
}

#[test]
fn encoded_secret_is_found() {
    let url = format!("https://h/a?b={MARK}");
    let escaped: String = MARK.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let percent: String = MARK.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut leaks = vec![
        MARK.to_owned(),
        MARK.to_uppercase(),
        url,
        percent.replace('%', "%25"),
        percent,
        escaped.replace('\\', "\\\\"),
        escaped,
        "https%3A%2F%2Fh%2Fcapture".to_owned(),
        "https:\\/\\/h\\/mobile?x".to_owned(),
    ];
    for before in ["", "a", "ab", "abc"] {
        let token = format!("{before}{MARK}+/=");
        leaks.push(STANDARD_NO_PAD.encode(&token));
        leaks.push(URL_SAFE_NO_PAD.encode(&token));
        leaks.push(token.bytes().map(|byte| format!("{byte:02x}")).collect());
    }
    for leak in leaks {
        let text = format!("before {leak} after");
        let found = std::panic::catch_unwind(|| assert_no_secret("it", &text)).is_err();
        assert!(found, "{text}");
    }
    assert_no_secret("it", "no secret: \\u0041 %41 bXVzdA must not leak");
}
