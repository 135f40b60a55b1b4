//! The links of a session: the handoff URL, which a person opens, and the inner link, which SDKs take.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use secrecy::ExposeSecret;
use url::Url;

use crate::{
    config::PlatformSettings,
    session::{Access, Session},
};

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

/// The links of a session. Secrets.
pub struct Links {
    /// The handoff URL, which a person opens.
    pub url: String,
    /// The inner link, which the platform's SDKs take. In the one-call flow, both are the same.
    pub mobile_url: String,
}

/// Builds the links of sessions.
pub(crate) struct LinkBuilder {
    /// The base of the links that people open.
    public: Url,
    /// Whether it replaces that of the one-call flow's links.
    replaces_base: bool,
}

impl LinkBuilder {
    pub(crate) fn new(settings: &PlatformSettings) -> Self {
        let public = settings.public_url.as_ref();
        Self { public: public.unwrap_or(&settings.url).clone(), replaces_base: public.is_some() }
    }

    pub(crate) fn links(&self, session: &Session) -> Links {
        match &session.access {
            Access::Token(token) => {
                Links::of_token(&self.public, token.expose_secret(), &session.id)
            }
            Access::Link(link) => {
                let link = link.expose_secret();
                // The call checked that the base can be replaced. A link made before this setting stays as it is.
                let replaced = self.replaces_base.then(|| with_base(link, &self.public)).flatten();
                let url = replaced.unwrap_or_else(|| link.to_owned());
                Links { mobile_url: url.clone(), url }
            }
        }
    }
}

impl Links {
    /// Builds the links of the two-call flow.
    ///
    /// The handoff URL is `{public}/capture?url=<inner>`, where the inner link is
    /// `{public}/mobile?authorization=<token>&sessionId=<id>`, escaped again as a whole.
    pub fn of_token(public: &Url, token: &str, session_id: &str) -> Self {
        let public = without_slash(public);
        // One allocation each as a rule: few characters grow to `%XX` or, escaped twice, to `%25XX`.
        let length = public.len() + token.len() + session_id.len();
        let mut mobile_url = String::with_capacity(length + 64);
        mobile_url.extend([public, "/mobile?authorization="]);
        mobile_url.extend(encode_component(token));
        mobile_url.push_str("&sessionId=");
        mobile_url.extend(encode_component(session_id));
        let mut url = String::with_capacity(public.len() + 3 * length + 80);
        url.extend([public, "/capture?url="]);
        url.extend(encode_component(&mobile_url));
        Self { url, mobile_url }
    }
}

/// Replaces everything before the last path segment that is exactly `mobile`. `None`: there is no such segment.
pub(super) fn with_base(link: &str, public: &Url) -> Option<String> {
    Some([without_slash(public), from_mobile(link)?].concat())
}

/// Returns a link from the slash before the last path segment that is exactly `mobile`.
pub(super) fn from_mobile(link: &str) -> Option<&str> {
    const SLASH_MOBILE: &str = "/mobile";
    let path_start = link.find("://")? + "://".len();
    let path_end = link.find(['?', '#']).unwrap_or(link.len());
    // The first piece is the host.
    let path = link.get(path_start..path_end)?;
    let mut found = path.rmatch_indices(SLASH_MOBILE).filter(|(at, _)| {
        let after = &path[at + SLASH_MOBILE.len()..];
        after.is_empty() || after.starts_with('/')
    });
    link.get(path_start + found.next()?.0..)
}

/// Appends a route to a base URL.
pub(super) fn join(base: &Url, route: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{route}", base.path().trim_end_matches('/')));
    url
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
    fn links_have_the_documented_form() {
        let links = Links::of_token(&base("https://idv.example.com"), "Token tr-1+2", "5f");
        assert_eq!(
            links.mobile_url,
            "https://idv.example.com/mobile?authorization=Token%20tr-1%2B2&sessionId=5f"
        );
        assert_eq!(
            links.url,
            "https://idv.example.com/capture?url=https%3A%2F%2Fidv.example.com%2Fmobile\
             %3Fauthorization%3DToken%2520tr-1%252B2%26sessionId%3D5f"
        );
    }

    #[test]
    fn path_prefix_is_kept() {
        for url in ["https://x.example/idv", "https://x.example/idv/"] {
            let Links { url, mobile_url } = Links::of_token(&base(url), "t", "s");
            assert!(url.starts_with("https://x.example/idv/capture?url="), "{url}");
            assert!(url.contains("%2Fidv%2Fmobile%3F"), "{url}");
            assert!(mobile_url.starts_with("https://x.example/idv/mobile?"), "{mobile_url}");
        }
    }

    #[test]
    fn public_url_replaces_what_is_before_the_last_segment_mobile() {
        let public = base("https://idv.example.com/eu/");
        for (link, expected) in [
            ("http://10.0.0.1:3000/mobile?a=1", Some("/mobile?a=1")),
            ("http://h/a/b/mobile?a=/mobile/x", Some("/mobile?a=/mobile/x")),
            ("http://h/mobile/mobile?a#/mobile/y", Some("/mobile?a#/mobile/y")),
            ("http://h/mobile/mobile/x//y?a", Some("/mobile/x//y?a")),
            ("http://mobile/x/mobile/?a", Some("/mobile/?a")),
            ("http://h/mobile#x", Some("/mobile#x")),
            ("http://h/mobiles/Mobile/%6Dobile?a", None),
            ("http://mobile?a=/mobile", None),
            ("http://mobile", None),
            ("http://h/?a=/mobile", None),
            ("http://h/x#/mobile", None),
            ("/mobile", None),
        ] {
            let expected = expected.map(|rest| format!("https://idv.example.com/eu{rest}"));
            assert_eq!(with_base(link, &public), expected, "{link}");
        }
    }

    proptest! {
        #[test]
        fn any_token_and_id_survive_encoding(token in "\\PC*|.*", id in "\\PC*|.*") {
            let Links { url: link, mobile_url } = Links::of_token(&base("https://idv.example.com/p"), &token, &id);
            let (before, inner) = link.split_once("?url=").unwrap();
            prop_assert_eq!(before, "https://idv.example.com/p/capture");
            prop_assert!(inner.is_ascii() && !inner.contains(['+', ' ', '&', '=', '#']));

            let inner = decode(inner);
            prop_assert_eq!(&inner, &mobile_url);
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
