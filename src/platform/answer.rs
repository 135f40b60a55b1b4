//! The platform's answers: what is read of them, and what makes one broken.

use std::{borrow::Cow, collections::HashMap};

use serde_json::value::RawValue;

/// The token in a token call's answer: any text that is not empty.
pub(crate) fn token(body: &[u8]) -> Result<String, &'static str> {
    let fields = object(body)?;
    let token = fields.get("authorization").and_then(|raw| text(raw));
    token.filter(|token| !token.is_empty()).ok_or("a body without `authorization`")
}

/// The session id in a session call's answer: `id` or, failing that, `sessionId`.
pub(crate) fn session_id(body: &[u8]) -> Result<String, &'static str> {
    let fields = object(body)?;
    ["id", "sessionId"]
        .into_iter()
        .find_map(|key| fields.get(key).and_then(|raw| id(raw)))
        .ok_or("a body without a session id")
}

fn object(body: &[u8]) -> Result<HashMap<Cow<'_, str>, &RawValue>, &'static str> {
    // Values stay unread, so nothing a stranger nests in them costs more than skipping it.
    serde_json::from_slice(body).map_err(|_| "a body that is not a JSON object")
}

fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// A string that is not empty, or a number as it is written: no digit is lost.
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
    fn a_token_is_any_text() {
        assert_eq!(
            token(br#"{"x":1,"authorization":"Token tr-\u00e9 +/=&%"}"#),
            Ok("Token tr-é +/=&%".into())
        );
        for wrong in ["", "[]", "{}", r#"{"authorization":""}"#, r#"{"authorization":7}"#, "{} x"] {
            assert!(token(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(token(b"{\"authorization\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_session_id_is_a_string_or_a_number_under_either_name() {
        for (answer, expected) in [
            (r#"{"id":"5f"}"#, "5f"),
            (r#"{"id":"5f","sessionId":"6e"}"#, "5f"),
            (r#"{"sessionId":"6e"}"#, "6e"),
            (r#"{"id":null,"sessionId":"6e"}"#, "6e"),
            (r#"{"id":{},"sessionId":7}"#, "7"),
            (r#"{"id":12345678901234567890123}"#, "12345678901234567890123"),
            (r#"{"id":0}"#, "0"),
        ] {
            assert_eq!(session_id(answer.as_bytes()).as_deref(), Ok(expected), "{answer}");
        }
        for wrong in ["{}", r#"{"id":""}"#, r#"{"id":true}"#, r#"{"id":["5f"]}"#, r#"["5f"]"#] {
            assert!(session_id(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
