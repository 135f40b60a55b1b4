//! What the worker reads of the platform's answers.

use std::{borrow::Cow, collections::HashMap};

use reqwest::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap},
};
use serde_json::value::RawValue;

/// UTF-8's byte order mark, which a parser of JSON may ignore (RFC 8259, section 8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the token from a token call's answer: any non-empty text.
pub(crate) fn parse_token(body: &[u8]) -> Result<String, &'static str> {
    let fields = object(body)?;
    let token = fields.get("authorization").and_then(|raw| text(raw));
    token.filter(|token| !token.is_empty()).ok_or("a body without `authorization`")
}

/// Reads the session id from a session call's answer: `id`, or else `sessionId`.
pub(crate) fn parse_session_id(body: &[u8]) -> Result<String, &'static str> {
    let fields = object(body)?;
    ["id", "sessionId"]
        .into_iter()
        .find_map(|key| fields.get(key).and_then(|raw| id(raw)))
        .ok_or("a body without a session id")
}

/// Reads fields that are text; `None` for each that is missing or no text.
pub(crate) fn texts<const N: usize>(
    body: &[u8],
    names: [&str; N],
) -> Result<[Option<String>; N], &'static str> {
    let fields = object(body)?;
    Ok(names.map(|name| fields.get(name).and_then(|raw| text(raw))))
}

fn object(body: &[u8]) -> Result<HashMap<Cow<'_, str>, &RawValue>, &'static str> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    // Raw values: deeply nested ones cost no more than skipping them.
    serde_json::from_slice(body).map_err(|_| "a body that is not a JSON object")
}

/// Says what a body is instead of the JSON object that was expected; `None` if it is one.
pub(super) fn explain(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Option<&'static str> {
    if object(body).is_ok() {
        return None;
    }
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if body.trim_ascii().is_empty() {
        let is_no_content = status == StatusCode::NO_CONTENT;
        return Some(if is_no_content { "status 204 and no body" } else { "an empty body" });
    }
    if let Some(compressed) = compressed(header(CONTENT_ENCODING), body) {
        return Some(compressed);
    }
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii_start();
    // A NUL is invalid in JSON, and every second byte of ASCII text in UTF-16.
    let is_utf16 = |body: &[u8]| body.iter().take(2).any(|byte| *byte == 0);
    if body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff") || is_utf16(body) {
        return Some("a body in UTF-16 or UTF-32 instead of UTF-8");
    }
    let media_type = header(CONTENT_TYPE).to_ascii_lowercase();
    let looks_like_json = body.starts_with(b"{") || body.starts_with(b"[");
    if body.starts_with(b"<") || (media_type.contains("html") && !looks_like_json) {
        return Some(
            "an HTML or XML page instead of JSON (a login page, or a proxy's page?): check HANDOFF_IDV_URL",
        );
    }
    if std::str::from_utf8(body).is_err() {
        return Some(if media_type.contains("charset=") && !media_type.contains("utf-8") {
            "a body that is not UTF-8, but in the charset that its Content-Type names"
        } else {
            "a body that is not UTF-8"
        });
    }
    Some(match (body.first(), serde_json::from_slice::<&RawValue>(body)) {
        (Some(b'['), Ok(_)) => "a JSON array instead of an object",
        (Some(b'"'), Ok(_)) => "a JSON string instead of an object",
        (_, Ok(_)) => "a JSON number or literal instead of an object",
        (Some(b'{'), Err(_)) => "a JSON object that is malformed or cut off",
        (_, Err(_)) if media_type.contains("json") => {
            "a body that is not JSON, although its Content-Type is a JSON type"
        }
        (_, Err(_)) => "a body that is not JSON, and its Content-Type is not a JSON type",
    })
}

/// Names the compression of a body, by its header or its first bytes. The calls ask for none.
fn compressed(encoding: &str, body: &[u8]) -> Option<&'static str> {
    macro_rules! text {
        ($name:literal) => {
            concat!(
                "a body compressed with ",
                $name,
                " (Content-Encoding), which the call does not accept: turn compression off in the platform, \
                 or in the proxy in front of it"
            )
        };
    }
    Some(match encoding.trim().to_ascii_lowercase().as_str() {
        "gzip" | "x-gzip" => text!("gzip"),
        "br" => text!("brotli"),
        "deflate" => text!("deflate"),
        "zstd" => text!("zstd"),
        "" | "identity" if body.starts_with(b"\x1f\x8b") => text!("gzip, without a header"),
        "" | "identity" if body.starts_with(b"\x28\xb5\x2f\xfd") => text!("zstd, without a header"),
        "" | "identity" => return None,
        _ => text!("an unknown encoding"),
    })
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// A non-empty string, or a number exactly as written: parsing would lose digits of long ones.
fn id(raw: &RawValue) -> Option<String> {
    let json = raw.get();
    match json.as_bytes().first()? {
        b'"' => text(raw).filter(|id| !id.is_empty()),
        b'-' | b'0'..=b'9' => Some(json.to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_any_text() {
        assert_eq!(
            parse_token(br#"{"x":1,"authorization":"Token tr-\u00e9 +/=&%"}"#),
            Ok("Token tr-é +/=&%".into())
        );
        for wrong in ["", "[]", "{}", r#"{"authorization":""}"#, r#"{"authorization":7}"#, "{} x"] {
            assert!(parse_token(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(parse_token(b"{\"authorization\":\"\xff\"}").is_err());
    }

    #[test]
    fn byte_order_mark_is_skipped() {
        assert_eq!(parse_token(b"\xef\xbb\xbf{\"authorization\":\"t\"}"), Ok("t".into()));
        assert_eq!(parse_session_id(b"\xef\xbb\xbf {\"id\":7}"), Ok("7".into()));
        assert!(parse_token(b"\xef\xbb\xbf\xef\xbb\xbf{\"authorization\":\"t\"}").is_err());
    }

    #[test]
    fn session_id_is_a_string_or_a_number_under_either_name() {
        for (answer, expected) in [
            (r#"{"id":"5f"}"#, "5f"),
            (r#"{"id":"5f","sessionId":"6e"}"#, "5f"),
            (r#"{"sessionId":"6e"}"#, "6e"),
            (r#"{"id":null,"sessionId":"6e"}"#, "6e"),
            (r#"{"id":{},"sessionId":7}"#, "7"),
            (r#"{"id":12345678901234567890123}"#, "12345678901234567890123"),
            (r#"{"id":0}"#, "0"),
        ] {
            assert_eq!(parse_session_id(answer.as_bytes()).as_deref(), Ok(expected), "{answer}");
        }
        for wrong in ["{}", r#"{"id":""}"#, r#"{"id":true}"#, r#"{"id":["5f"]}"#, r#"["5f"]"#] {
            assert!(parse_session_id(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
