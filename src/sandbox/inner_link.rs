//! Validates the inner link that `/capture` shows.
//!
//! Only a link to a `/mobile` page is shown, so that the page cannot be misused to send people to
//! other sites.

use super::query;

/// An inner link that may be shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InnerLink<'a> {
    pub(super) url: &'a str,
    /// The host, with the port if there is one.
    pub(super) host: &'a str,
}

/// Why an inner link is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InnerLinkError {
    /// Not an `http` or `https` URL, or one with invalid characters.
    NotAUrl,
    /// The path does not end in `/mobile`.
    NotMobile,
    /// `authorization` or `sessionId` is missing or invalid, as in a link that was not encoded.
    Incomplete,
}

impl<'a> InnerLink<'a> {
    /// Parses an inner link. Any host is allowed, since the sandbox may have several names; the
    /// page shows the host.
    pub(super) fn parse(url: &'a str) -> Result<Self, InnerLinkError> {
        // An encoded URL is visible ASCII. Browsers take a backslash for a slash and skip control
        // characters, so both must be rejected.
        if !url.bytes().all(|b| b.is_ascii_graphic() && !b"\\\"<>^`{|}".contains(&b)) {
            return Err(InnerLinkError::NotAUrl);
        }
        let (scheme, rest) = url.split_once("://").ok_or(InnerLinkError::NotAUrl)?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(InnerLinkError::NotAUrl);
        }
        let (address, query) = rest.split_once('?').ok_or(InnerLinkError::NotMobile)?;
        let (host, path) = address.split_once('/').ok_or(InnerLinkError::NotMobile)?;
        let valid_in_host = |b: u8| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b);
        // `@` is invalid here: user info in front of the host would disguise it.
        if host.is_empty() || host.starts_with(':') || !host.bytes().all(valid_in_host) {
            return Err(InnerLinkError::NotAUrl);
        }
        if path.contains('#') || !(path == "mobile" || path.ends_with("/mobile")) {
            return Err(InnerLinkError::NotMobile);
        }
        let complete = !query.contains('#')
            && query::parameter(query, "authorization").is_ok()
            && query::parameter(query, "sessionId").is_ok();
        if !complete {
            return Err(InnerLinkError::Incomplete);
        }
        Ok(Self { url, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_mobile_pages_are_accepted() {
        for (url, host) in [
            ("http://127.0.0.1:8085/mobile?authorization=t&sessionId=s", "127.0.0.1:8085"),
            ("https://idv.example.com/a/b/mobile?authorization=t&sessionId=s", "idv.example.com"),
            ("HTTPS://[::1]:8085/mobile?sessionId=s&authorization=%20%2B", "[::1]:8085"),
        ] {
            assert_eq!(InnerLink::parse(url), Ok(InnerLink { url, host }));
        }
    }

    #[test]
    fn other_links_are_rejected() {
        use InnerLinkError::{Incomplete, NotAUrl, NotMobile};
        for (url, error) in [
            ("javascript:alert(1)//mobile?authorization=t&sessionId=s", NotAUrl),
            ("javascript://x/mobile?authorization=t&sessionId=s", NotAUrl),
            ("data:text/html,x", NotAUrl),
            ("//evil.example/mobile?authorization=t&sessionId=s", NotAUrl),
            ("/mobile?authorization=t&sessionId=s", NotAUrl),
            (" http://a/mobile?authorization=t&sessionId=s", NotAUrl),
            ("http:///mobile?authorization=t&sessionId=s", NotAUrl),
            ("http://good.example@evil.example/mobile?authorization=t&sessionId=s", NotAUrl),
            ("http://evil.example\\@good.example/mobile?authorization=t&sessionId=s", NotAUrl),
            ("http://a/mobile?authorization=t t&sessionId=s", NotAUrl),
            ("http://a/mobile?authorization=é&sessionId=s", NotAUrl),
            ("http://a/mobile?authorization=\"&sessionId=s", NotAUrl),
            ("http://evil.example/login?authorization=t&sessionId=s", NotMobile),
            ("http://evil.example/xmobile?authorization=t&sessionId=s", NotMobile),
            ("http://evil.example/?x=/mobile", NotMobile),
            ("http://evil.example/#/mobile?authorization=t&sessionId=s", NotMobile),
            ("http://evil.example/mobile", NotMobile),
            ("http://a/mobile?authorization=t", Incomplete),
            ("http://a/mobile?authorization=&sessionId=s", Incomplete),
            ("http://a/mobile?authorization=t#&sessionId=s", Incomplete),
            ("http://a/mobile?authorization=%zz&sessionId=s", Incomplete),
        ] {
            assert_eq!(InnerLink::parse(url), Err(error), "{url}");
        }
    }
}
