//! Reading JSON objects from strangers: every key at most once, every value left as it stands.

use std::{borrow::Cow, fmt};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Levels of arrays and objects within each other that a body may have.
const MAX_DEPTH: usize = 128;

/// The values of the wanted keys in a JSON object, `null` and absent alike being `None`.
pub(super) struct Fields<'a, const N: usize> {
    pub(super) values: [Option<&'a RawValue>; N],
    /// Wanted keys that stand more than once, each named once.
    pub(super) repeated: Vec<&'static str>,
}

/// Reads the wanted keys of a JSON object and skips all others. `None` where it is no object.
pub(super) fn fields<'a, const N: usize>(
    json: &'a str,
    wanted: [&'static str; N],
) -> Option<Fields<'a, N>> {
    struct Wanted<const N: usize>([&'static str; N]);

    impl<'de, const N: usize> Visitor<'de> for Wanted<N> {
        type Value = Fields<'de, N>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Fields { values: [None; N], repeated: Vec::new() };
            let mut seen = [false; N];
            while let Some(key) = map.next_key::<&RawValue>()? {
                let Some(at) =
                    key_text(key).and_then(|key| self.0.iter().position(|wanted| key == *wanted))
                else {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                };
                let value = map.next_value::<&RawValue>()?;
                // However often it stands there, it is named once: who writes a body has no say in how
                // long the complaint about it gets.
                if std::mem::replace(&mut seen[at], true) && !fields.repeated.contains(&self.0[at])
                {
                    fields.repeated.push(self.0[at]);
                }
                fields.values[at] = (value.get() != "null").then_some(value);
            }
            Ok(fields)
        }
    }

    let mut json = serde_json::Deserializer::from_str(json);
    let fields = json.deserialize_map(Wanted(wanted)).ok()?;
    json.end().ok()?;
    Some(fields)
}

/// The entries of a JSON object in their order, keys and values as they stand.
pub(super) fn entries(json: &str) -> Option<Vec<(&RawValue, &RawValue)>> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<(&'de RawValue, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    serde_json::Deserializer::from_str(json).deserialize_map(Entries).ok()
}

/// Whether a key, as it stands in JSON, says this.
pub(super) fn is_key(key: &RawValue, says: &str) -> bool {
    key_text(key).is_some_and(|key| key == says)
}

/// What a key says, unless it is no text in any encoding, such as half of a surrogate pair.
fn key_text(key: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = key.get();
    match quoted.contains('\\') {
        false => quoted.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed),
        true => serde_json::from_str(quoted).ok().map(Cow::Owned),
    }
}

/// Whether arrays and objects lie deeper within each other than any honest body's would.
///
/// Skipped values are skipped without recursion, but whoever reads metadata after us may recurse.
pub(super) fn too_deep(json: &str) -> bool {
    // Where no more are opened at all, none can lie deeper. Counting them all takes next to nothing.
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
    fn wanted_keys_are_found_even_when_escaped() {
        let fields = fields(r#"{"x":[1],"\u0061":"é","b":null}"#, ["a", "b", "c"]).unwrap();
        assert_eq!(fields.values[0].unwrap().get(), "\"é\"");
        assert!(fields.values[1].is_none() && fields.values[2].is_none());
        assert!(fields.repeated.is_empty());
    }

    #[test]
    fn repeated_keys_are_named() {
        let fields =
            fields(r#"{"a":1,"\u0061":2,"a":3,"x":1,"x":2,"b":null,"b":1}"#, ["a", "b"]).unwrap();
        assert_eq!(fields.repeated, ["a", "b"]);
    }

    #[test]
    fn keys_that_are_no_text_are_only_unknown() {
        let fields = fields(r#"{"\ud800":1,"a\"":2,"a":3}"#, ["a"]).unwrap();
        assert_eq!(fields.values[0].unwrap().get(), "3");
        let entries = entries(r#"{"\ud800":1, "b" : [ 2 ]}"#).unwrap();
        let entries: Vec<_> = entries.iter().map(|(key, value)| (key.get(), value.get())).collect();
        assert_eq!(entries, [(r#""\ud800""#, "1"), (r#""b""#, "[ 2 ]")]);
    }

    #[test]
    fn only_one_object_is_an_object() {
        for wrong in ["", "[]", "1", "{", "{}{}", r#"{"a"}"#, r#"{"a":}"#] {
            assert!(fields(wrong, ["a"]).is_none(), "{wrong}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(!too_deep(&nested(128)));
        assert!(too_deep(&nested(129)));
        assert!(!too_deep(&format!("\"\\\"{}\"", nested(500))));
    }
}
