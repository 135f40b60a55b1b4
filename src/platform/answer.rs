//! What the worker reads of the platform's answers.

use std::{borrow::Cow, collections::HashMap};

use serde_json::value::RawValue;

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

fn object(body: &[u8]) -> Result<HashMap<Cow<'_, str>, &RawValue>, &'static str> {
    // Raw values: deeply nested ones cost no more than skipping them.
    serde_json::from_slice(body).map_err(|_| "a body that is not a JSON object")
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
