//! Reads and writes query parameters as JavaScript's `decodeURIComponent` does.
//!
//! `+` stays `+`, and an invalid escape or invalid UTF-8 is an error, so that a link with an
//! encoding mistake does not work by accident.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What `encodeURIComponent` leaves as it is, besides letters and digits, is `-_.!~*'()`. The platform escapes
/// more, which makes no difference to one that decodes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes a value.
pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Why a query parameter is unusable. Contains the parameter's name, never its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
    Malformed(&'static str),
    /// Missing or empty.
    Missing(&'static str),
    Duplicate(&'static str),
}

/// Returns the decoded value of a parameter that occurs exactly once and is not empty.
pub(super) fn parameter<'a>(
    query: &'a str,
    name: &'static str,
) -> Result<Cow<'a, str>, QueryError> {
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then_some(value)
    });
    let value = values.next().ok_or(QueryError::Missing(name))?;
    if values.next().is_some() {
        return Err(QueryError::Duplicate(name));
    }
    match decode(value) {
        None => Err(QueryError::Malformed(name)),
        Some(value) if value.is_empty() => Err(QueryError::Missing(name)),
        Some(value) => Ok(value),
    }
}

/// `decodeURIComponent`; `None` where that throws.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let escapes = text.split('%').skip(1);
    let well_formed = escapes.map(str::as_bytes).all(|rest| {
        matches!(rest, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
    });
    well_formed.then(|| percent_decode_str(text).decode_utf8().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_like_decode_uri_component() {
        for (text, decoded) in [
            ("", Some("")),
            ("a+b", Some("a+b")),
            ("a%20b", Some("a b")),
            ("%2B%26%3d%25", Some("+&=%")),
            ("%252B", Some("%2B")),
            ("%C3%A9%E6%97%A5%F0%9F%98%80", Some("é日😀")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%2%30", None),
            ("100%", None),
            ("%+1", None),
            ("%C3", None),
            ("%FF", None),
            // Half of a surrogate pair, encoded like a character.
            ("%ED%A0%80", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }

    #[test]
    fn a_parameter_occurs_exactly_once() {
        let read = |query| parameter(query, "url").map(Cow::into_owned);
        assert_eq!(read("url=a"), Ok("a".to_owned()));
        assert_eq!(read("x=1&url=a%26b&y"), Ok("a&b".to_owned()));
        assert_eq!(read("url=a=b"), Ok("a=b".to_owned()));
        assert_eq!(read("%75rl=a"), Ok("a".to_owned()));
        for missing in ["", "url", "url=", "URL=a", "x=url"] {
            assert_eq!(read(missing), Err(QueryError::Missing("url")), "{missing}");
        }
        assert_eq!(read("url=a&url=b"), Err(QueryError::Duplicate("url")));
        assert_eq!(read("url=%FF"), Err(QueryError::Malformed("url")));
    }
}
