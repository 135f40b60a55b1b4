//! Reads untrusted JSON objects: reports repeated keys, and leaves values as raw text.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// How deep arrays and objects may be nested.
const MAX_DEPTH: usize = 128;

/// The values of the wanted keys; `None` if a key is absent or `null`.
pub(super) struct Fields<'a, const N: usize> {
    pub(super) values: [Option<&'a RawValue>; N],
    /// Wanted keys that appear more than once, each listed once.
    pub(super) repeated: Vec<&'static str>,
}

/// Reads the wanted keys of a JSON object, or returns `None` if it is not one.
pub(super) fn fields<'a, const N: usize>(
    json: &'a str,
    wanted: [&'static str; N],
) -> Option<Fields<'a, N>> {
    let mut fields = Fields { values: [None; N], repeated: Vec::new() };
    let mut seen = [false; N];
    for_each_entry(json, |key, value| {
        let Some(key) = key_text(key) else { return };
        let Some(at) = wanted.iter().position(|wanted| key == *wanted) else { return };
        // Listed once, so that a body of repeated keys does not make a long error message.
        if std::mem::replace(&mut seen[at], true) && !fields.repeated.contains(&wanted[at]) {
            fields.repeated.push(wanted[at]);
        }
        fields.values[at] = (value.get() != "null").then_some(value);
    })?;
    Some(fields)
}

/// Visits the entries of a JSON object in order, or returns `None` if it is not one.
pub(super) fn for_each_entry<'a>(
    json: &'a str,
    visit: impl FnMut(&'a RawValue, &'a RawValue),
) -> Option<()> {
    struct Entries<F>(F);

    impl<'de, F: FnMut(&'de RawValue, &'de RawValue)> Visitor<'de> for Entries<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry()? {
                (self.0)(key, value);
            }
            Ok(())
        }
    }

    let mut json = serde_json::Deserializer::from_str(json);
    json.deserialize_map(Entries(visit)).ok()?;
    json.end().ok()
}

/// Whether a raw key, which may contain escapes, is `name`.
pub(super) fn is_key(key: &RawValue, name: &str) -> bool {
    key_text(key).is_some_and(|key| key == name)
}

/// Unescapes a key, or returns `None` if it is not valid Unicode, such as half a surrogate pair.
fn key_text(key: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = key.get();
    if quoted.contains('\\') {
        serde_json::from_str(quoted).ok().map(Cow::Owned)
    } else {
        quoted.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
    }
}

/// Whether arrays and objects are nested more than [`MAX_DEPTH`] levels deep.
///
/// This crate skips values without recursion, but the platform that parses `metadata` may recurse.
pub(super) fn is_too_deep(json: &str) -> bool {
    // A body with few brackets cannot be deep. Counting them is faster than tracking strings.
    if json.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MAX_DEPTH {
        return false;
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_keys_are_found_even_if_escaped() {
        let fields = fields(r#"{"x":[1],"\u0061":"é","b":null}"#, ["a", "b", "c"]).unwrap();
        assert_eq!(fields.values[0].unwrap().get(), "\"é\"");
        assert!(fields.values[1].is_none() && fields.values[2].is_none());
        assert!(fields.repeated.is_empty());
    }

    #[test]
    fn repeated_keys_are_listed_once() {
        let fields =
            fields(r#"{"a":1,"\u0061":2,"a":3,"x":1,"x":2,"b":null,"b":1}"#, ["a", "b"]).unwrap();
        assert_eq!(fields.repeated, ["a", "b"]);
    }

    #[test]
    fn keys_that_are_not_unicode_are_ignored() {
        let fields = fields(r#"{"\ud800":1,"a\"":2,"a":3}"#, ["a"]).unwrap();
        assert_eq!(fields.values[0].unwrap().get(), "3");
        let mut entries = Vec::new();
        let json = r#"{"\ud800":1, "b" : [ 2 ]}"#;
        for_each_entry(json, |key, value| entries.push((key.get(), value.get()))).unwrap();
        assert_eq!(entries, [(r#""\ud800""#, "1"), (r#""b""#, "[ 2 ]")]);
    }

    #[test]
    fn other_values_and_several_objects_are_refused() {
        for wrong in ["", "[]", "1", "{", "{}{}", r#"{"a"}"#, r#"{"a":}"#] {
            assert!(fields(wrong, ["a"]).is_none(), "{wrong}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(!is_too_deep(&nested(128)));
        assert!(is_too_deep(&nested(129)));
        assert!(!is_too_deep(&format!("\"\\\"{}\"", nested(500))));
    }
}
