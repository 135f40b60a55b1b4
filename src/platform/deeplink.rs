//! Reads the answer of the one-call flow: a link, which contains a token and the session's id.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{answer, link::from_mobile};
use crate::message::parse_date_time;

/// A link as the platform made it.
#[derive(Debug)]
pub(crate) struct Deeplink {
    /// Byte for byte. A secret.
    pub(crate) url: SecretString,
    pub(crate) session_id: String,
    /// When it ends; `None` if the answer does not say so in a readable form.
    pub(crate) expires_at: Option<SystemTime>,
}

/// Reads the answer where `HANDOFF_IDV_PUBLIC_URL` replaces the base of the link.
pub(super) fn parse_replaceable(body: &[u8]) -> Result<Deeplink, &'static str> {
    const NO_MOBILE: &str = "a `url` without a path segment `mobile`, where HANDOFF_IDV_PUBLIC_URL is to replace its base";
    let link = parse(body)?;
    from_mobile(link.url.expose_secret()).ok_or(NO_MOBILE)?;
    Ok(link)
}

/// Reads the answer.
pub(crate) fn parse(body: &[u8]) -> Result<Deeplink, &'static str> {
    let [url, expires_at] = answer::texts(body, ["url", "expiresAt"])?;
    let url = url.filter(|url| !url.is_empty()).ok_or("a body without `url`")?;
    let session_id = session_id(&url)?;
    let expires_at = expires_at.and_then(|text| parse_date_time(&text));
    Ok(Deeplink { url: url.into(), session_id, expires_at })
}

/// Returns the session id of a link that RFC 3986 allows, with both parameters.
fn session_id(url: &str) -> Result<String, &'static str> {
    const NOT_HTTP: &str = "a `url` that is not an absolute http or https URL";
    const FORBIDDEN: &str = "a `url` with characters that no URL may contain (RFC 3986)";
    let (scheme, rest) = url.split_once("://").ok_or(NOT_HTTP)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(NOT_HTTP);
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("a `url` with a user name or password");
    }
    let are_allowed = consists_of(authority, b":[]")
        && consists_of(path, b":@/")
        && consists_of(query, b":@/?")
        && consists_of(fragment, b":@/?");
    if !are_allowed {
        return Err(FORBIDDEN);
    }
    // `Url` repairs `http:///host/`.
    if authority.is_empty() || !Url::parse(url).is_ok_and(|url| url.has_host()) {
        return Err(NOT_HTTP);
    }
    parameter(
        query,
        "authorization",
        "a `url` whose query has no `authorization`, or an empty one",
        "a `url` whose query has `authorization` twice",
        "a `url` whose `authorization` is not UTF-8",
    )?;
    parameter(
        query,
        "sessionId",
        "a `url` whose query has no `sessionId`, or an empty one",
        "a `url` whose query has `sessionId` twice",
        "a `url` whose `sessionId` is not UTF-8",
    )
}

/// Whether a part of a URL consists of unreserved characters, sub-delimiters, complete escapes and these others.
fn consists_of(part: &str, others: &[u8]) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
    let mut escapes = part.split('%');
    let before = escapes.next().unwrap_or_default();
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    before.bytes().all(|byte| is_plain(byte) || others.contains(&byte))
        && escapes.all(|rest| {
            is_escape(rest) && rest.bytes().all(|byte| is_plain(byte) || others.contains(&byte))
        })
}

/// Decodes a parameter: only escapes, since `+` is a plus sign.
fn parameter(
    query: &str,
    name: &str,
    missing: &'static str,
    twice: &'static str,
    not_utf8: &'static str,
) -> Result<String, &'static str> {
    let mut values = query.split('&').filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        percent_decode_str(key).eq(name.bytes()).then_some(value)
    });
    let value = values.next().ok_or(missing)?;
    if values.next().is_some() {
        return Err(twice);
    }
    let value = percent_decode_str(value).decode_utf8().map_err(|_| not_utf8)?;
    if value.is_empty() { Err(missing) } else { Ok(value.into_owned()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::platform::link::{Links, encode_component, with_base};

    const GOOD: &str = "https://idv.example.com/mobile?authorization=Token%20t&sessionId=5f";

    fn body(url: &str) -> Vec<u8> {
        json!({ "url": url, "expiresAt": "2026-03-02T10:15:04.118Z" }).to_string().into_bytes()
    }

    #[test]
    fn link_is_kept_byte_for_byte_and_its_session_id_decoded() {
        for (url, id) in [
            (GOOD, "5f"),
            ("http://127.0.0.1:3000/a/mobile?sessionId=a+b%2B%26&x&authorization=t", "a+b+&"),
            ("HTTPS://[::1]/mobile?authorization=%C3%A9&%73essionId=%F0%9F%98%80#x?/@:", "😀"),
            ("https://x/?authorization=t&sessionId=%00&sessionid=2&&=", "\0"),
            ("https://x?authorization=t&sessionId=a=b=", "a=b="),
        ] {
            let link = parse(&body(url)).unwrap();
            assert_eq!((link.url.expose_secret(), &*link.session_id), (url, id));
        }
    }

    #[test]
    fn broken_links_are_named() {
        let long = format!("{GOOD}&x={}", "%".repeat(9));
        for (url, why) in [
            ("", "without `url`"),
            ("/mobile?authorization=t&sessionId=s", "absolute"),
            ("//x/mobile?authorization=t&sessionId=s", "absolute"),
            ("mailto:x?authorization=t&sessionId=s", "absolute"),
            ("javascript://x/mobile?authorization=t&sessionId=s", "absolute"),
            ("https:///mobile?authorization=t&sessionId=s", "absolute"),
            ("https://?authorization=t&sessionId=s", "absolute"),
            ("https://x:99999/mobile?authorization=t&sessionId=s", "absolute"),
            ("https://[::1/mobile?authorization=t&sessionId=s", "absolute"),
            (" https://x/mobile?authorization=t&sessionId=s", "absolute"),
            ("https://u@x/mobile?authorization=t&sessionId=s", "user name"),
            ("https://u:p@x/mobile?authorization=t&sessionId=s", "user name"),
            ("https://@x/mobile?authorization=t&sessionId=s", "user name"),
            ("https://x/mobile?authorization=t t&sessionId=s", "RFC 3986"),
            ("https://x/mobile?authorization=é&sessionId=s", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=\"s\"", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=%zz", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=s%", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=[s]", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=s#a#b", "RFC 3986"),
            ("https://x\\y/mobile?authorization=t&sessionId=s", "RFC 3986"),
            ("https://x/mobile?authorization=t&sessionId=s\n", "RFC 3986"),
            (&long, "RFC 3986"),
            ("https://x/mobile", "`authorization`"),
            ("https://x/mobile?sessionId=s", "no `authorization`"),
            ("https://x/mobile?authorization=&sessionId=s", "no `authorization`"),
            ("https://x/mobile?authorization=t", "no `sessionId`"),
            ("https://x/mobile?authorization=t&sessionId=", "no `sessionId`"),
            ("https://x/mobile?authorization=t&sessionId", "no `sessionId`"),
            ("https://x/mobile?authorization=t#&sessionId=s", "no `sessionId`"),
            ("https://x/mobile?authorization=t&sessionId=s&authorization=t", "twice"),
            ("https://x/mobile?authorization=t&sessionId=s&session%49d=t", "twice"),
            ("https://x/mobile?authorization=%FF&sessionId=s", "not UTF-8"),
            ("https://x/mobile?authorization=t&sessionId=%ED%A0%80", "not UTF-8"),
        ] {
            let error = parse(&body(url)).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
        for (body, why) in [
            ("[]", "JSON object"),
            ("{}", "without `url`"),
            (r#"{"url":7}"#, "without `url`"),
            (r#"{"url":["https://x"]}"#, "without `url`"),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{body}: {error}");
        }
    }

    #[test]
    fn segment_mobile_is_needed_only_where_the_base_is_replaced() {
        let without = body("https://x/m?authorization=t&sessionId=/mobile");
        assert!(parse(&without).is_ok());
        assert!(parse_replaceable(&without).unwrap_err().contains("`mobile`"));
        assert!(parse_replaceable(&body(GOOD)).is_ok());
    }

    #[test]
    fn expiry_that_cannot_be_read_is_ignored() {
        let expiry = |value: serde_json::Value| {
            let body = json!({ "url": GOOD, "expiresAt": value }).to_string();
            parse(body.as_bytes()).unwrap().expires_at
        };
        let read = expiry(json!("1970-01-01T00:00:01.5Z"));
        assert_eq!(read, Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)));
        for unreadable in [json!(null), json!(7), json!(""), json!("2026-03-02"), json!({})] {
            assert_eq!(expiry(unreadable), None);
        }
    }

    proptest! {
        #[test]
        fn any_token_and_session_id_come_through_unharmed(
            token in "(?s).{1,40}", id in "(?s).{1,40}", path in "(/[a-z]{0,6}){0,4}",
        ) {
            let url = format!(
                "https://10.0.0.1:3000{path}/mobile?authorization={}&sessionId={}",
                encode_component(&token), encode_component(&id),
            );
            let link = parse_replaceable(&body(&url)).unwrap();
            prop_assert_eq!(&link.session_id, &id);
            prop_assert_eq!(link.url.expose_secret(), &url);
            let public = Url::parse("https://idv.example.com/eu/").unwrap();
            let expected = Links::of_token(&public, &token, &id).mobile_url;
            prop_assert_eq!(with_base(&url, &public).unwrap(), expected);
        }

        #[test]
        fn link_that_is_accepted_means_the_same_to_a_browser(
            url in "https?://[a-z@:\\[\\]]{0,3}(/|mobile|%6D)*\\??([#&=+%a-f0-9é ]|authorization=|sessionId=)*",
        ) {
            if let Ok(link) = parse(&body(&url)) {
                let browsers = Url::parse(&url).unwrap();
                prop_assert!(browsers.username().is_empty() && browsers.password().is_none());
                let ids: Vec<_> =
                    browsers.query_pairs().filter(|(key, _)| key == "sessionId").collect();
                // Browsers' own query parser takes a plus sign for a space.
                prop_assert_eq!(ids.len(), 1);
                prop_assert_eq!(ids[0].1.replace(' ', "+"), link.session_id.replace(' ', "+"));
            }
        }
    }
}
