//! The handoff URL: the link that a person opens, which contains a second link.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use url::Url;

/// The set that JavaScript's `encodeURIComponent` escapes: all but ASCII letters, digits, `-_.!~*'()`.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// Escapes text exactly as `encodeURIComponent` does: a space becomes `%20`, never `+`.
pub(crate) fn encode_component(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, COMPONENT)
}

/// Builds the handoff URL for a token and a session.
///
/// `{public}/capture?url=<inner>`, where the inner link is
/// `{public}/mobile?authorization=<token>&sessionId=<id>`, escaped again as a whole.
pub fn handoff_url(public: &Url, token: &str, session_id: &str) -> String {
    let public = without_slash(public);
    // One allocation as a rule: few characters grow to `%XX` or, escaped twice, to `%25XX`.
    let mut link =
        String::with_capacity(3 * public.len() + 3 * (token.len() + session_id.len()) + 80);
    link.extend([public, "/capture?url="]);
    link.extend(encode_component(public));
    link.extend(encode_component("/mobile?authorization="));
    push_encoded_twice(&mut link, token);
    link.extend(encode_component("&sessionId="));
    push_encoded_twice(&mut link, session_id);
    link
}

fn push_encoded_twice(link: &mut String, text: &str) {
    for piece in encode_component(text) {
        // The second escape changes only the percent signs of the first.
        match piece.strip_prefix('%') {
            Some(digits) => link.extend(["%25", digits]),
            None => link.push_str(piece),
        }
    }
}

/// A base URL as text without its final slash, ready to append a path to.
fn without_slash(base: &Url) -> &str {
    base.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn base(url: &str) -> Url {
        Url::parse(url).unwrap()
    }

    /// JavaScript's `decodeURIComponent`.
    fn decode(text: &str) -> String {
        percent_decode_str(text).decode_utf8().unwrap().into_owned()
    }

    #[test]
    fn escapes_equal_encode_uri_component() {
        let plain = "AZaz09-_.!~*'()";
        assert_eq!(encode_component(plain).to_string(), plain);
        assert_eq!(
            encode_component(" +/=&%?#\"<>[]{}|\\^`:;,@$\u{7f}\u{0}").to_string(),
            "%20%2B%2F%3D%26%25%3F%23%22%3C%3E%5B%5D%7B%7D%7C%5C%5E%60%3A%3B%2C%40%24%7F%00"
        );
        assert_eq!(encode_component("é日😀").to_string(), "%C3%A9%E6%97%A5%F0%9F%98%80");
    }

    #[test]
    fn link_has_the_documented_form() {
        assert_eq!(
            handoff_url(&base("https://idv.example.com"), "Token tr-1+2", "5f"),
            "https://idv.example.com/capture?url=https%3A%2F%2Fidv.example.com%2Fmobile\
             %3Fauthorization%3DToken%2520tr-1%252B2%26sessionId%3D5f"
        );
    }

    #[test]
    fn path_prefix_is_kept() {
        for url in ["https://x.example/idv", "https://x.example/idv/"] {
            let link = handoff_url(&base(url), "t", "s");
            assert!(link.starts_with("https://x.example/idv/capture?url="), "{link}");
            assert!(link.contains("%2Fidv%2Fmobile%3F"), "{link}");
        }
    }

    proptest! {
        #[test]
        fn any_token_and_id_survive_encoding(token in "\\PC*|.*", id in "\\PC*|.*") {
            let link = handoff_url(&base("https://idv.example.com/p"), &token, &id);
            let (before, inner) = link.split_once("?url=").unwrap();
            prop_assert_eq!(before, "https://idv.example.com/p/capture");
            prop_assert!(inner.is_ascii() && !inner.contains(['+', ' ', '&', '=', '#']));

            let inner = decode(inner);
            let (before, query) = inner.split_once('?').unwrap();
            prop_assert_eq!(before, "https://idv.example.com/p/mobile");
            let (authorization, session) = query.split_once('&').unwrap();
            prop_assert_eq!(decode(authorization.strip_prefix("authorization=").unwrap()), token.clone());
            prop_assert_eq!(decode(session.strip_prefix("sessionId=").unwrap()), id.clone());

            // The URL standard's query parser, which browsers use, agrees.
            let link = Url::parse(&link).unwrap();
            let inner = Url::parse(&link.query_pairs().next().unwrap().1).unwrap();
            let pairs: Vec<_> = inner.query_pairs().map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
            prop_assert_eq!(pairs, [("authorization".to_owned(), token), ("sessionId".to_owned(), id)]);
        }
    }
}
