//! Percent-decoding exactly as JavaScript's `decodeURIComponent` does it: `+` stays `+`, and what
//! is no escape, or no UTF-8, is an error. A link that was encoded carelessly does not slip through.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Cause a query cannot be used. Holds only the names of parameters that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadQuery {
    /// A `%` without two hexadecimal digits, or bytes that are no UTF-8.
    Malformed(&'static str),
    /// Absent or empty.
    Missing(&'static str),
    /// Given more than once.
    Twice(&'static str),
}

/// The value of a query's parameter: there once, and not empty.
pub(super) fn parameter<'a>(query: &'a str, name: &'static str) -> Result<Cow<'a, str>, BadQuery> {
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key)? == name).then_some(value)
    });
    let value = values.next().ok_or(BadQuery::Missing(name))?;
    if values.next().is_some() {
        return Err(BadQuery::Twice(name));
    }
    match decode(value) {
        None => Err(BadQuery::Malformed(name)),
        Some(value) if value.is_empty() => Err(BadQuery::Missing(name)),
        Some(value) => Ok(value),
    }
}

/// `decodeURIComponent`; `None` where that throws.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
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
    fn decoding_is_that_of_decode_uri_component() {
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
            // Half of a surrogate pair, written as if it were a character.
            ("%ED%A0%80", None),
        ] {
            assert_eq!(decode(text).as_deref(), decoded, "{text}");
        }
    }

    #[test]
    fn a_parameter_is_there_once() {
        let read = |query| parameter(query, "url").map(Cow::into_owned);
        assert_eq!(read("url=a"), Ok("a".to_owned()));
        assert_eq!(read("x=1&url=a%26b&y"), Ok("a&b".to_owned()));
        assert_eq!(read("url=a=b"), Ok("a=b".to_owned()));
        assert_eq!(read("%75rl=a"), Ok("a".to_owned()));
        for missing in ["", "url", "url=", "URL=a", "x=url"] {
            assert_eq!(read(missing), Err(BadQuery::Missing("url")), "{missing}");
        }
        assert_eq!(read("url=a&url=b"), Err(BadQuery::Twice("url")));
        assert_eq!(read("url=%FF"), Err(BadQuery::Malformed("url")));
    }
}
