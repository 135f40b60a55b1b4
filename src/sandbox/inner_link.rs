//! The inner link that `/capture` is asked to show: only one that leads to a `/mobile` page is
//! shown, so that the page cannot be used to send people anywhere else.

use super::escapes;

/// An inner link that may be shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InnerLink<'a> {
    /// As it was given.
    pub(super) url: &'a str,
    /// Its host, with the port if there is one.
    pub(super) host: &'a str,
}

/// Cause an inner link is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadInnerLink {
    /// No `http` or `https` address, or one with characters that belong in no address.
    NoAddress,
    /// It does not lead to a `/mobile` page.
    Elsewhere,
    /// It lacks `authorization` or `sessionId`, as one does that was not encoded on its way here.
    Incomplete,
}

impl<'a> InnerLink<'a> {
    /// Checks an inner link. Any host will do, since the sandbox may be reached by several names;
    /// the page says where the link leads.
    pub(super) fn read(url: &'a str) -> Result<Self, BadInnerLink> {
        // What is in an encoded address is visible ASCII. Browsers read a backslash as a slash and
        // skip control characters, so that neither may stand anywhere.
        if !url.bytes().all(|b| b.is_ascii_graphic() && !b"\\\"<>^`{|}".contains(&b)) {
            return Err(BadInnerLink::NoAddress);
        }
        let (scheme, rest) = url.split_once("://").ok_or(BadInnerLink::NoAddress)?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(BadInnerLink::NoAddress);
        }
        let (place, query) = rest.split_once('?').ok_or(BadInnerLink::Elsewhere)?;
        let (host, path) = place.split_once('/').ok_or(BadInnerLink::Elsewhere)?;
        let host_is_fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b);
        // No user name before the host: it would only disguise it.
        if host.is_empty() || host.starts_with(':') || !host.bytes().all(host_is_fine) {
            return Err(BadInnerLink::NoAddress);
        }
        if path.contains('#') || !(path == "mobile" || path.ends_with("/mobile")) {
            return Err(BadInnerLink::Elsewhere);
        }
        let complete = !query.contains('#')
            && escapes::parameter(query, "authorization").is_ok()
            && escapes::parameter(query, "sessionId").is_ok();
        match complete {
            true => Ok(Self { url, host }),
            false => Err(BadInnerLink::Incomplete),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_mobile_pages_are_fine() {
        for (url, host) in [
            ("http://127.0.0.1:8085/mobile?authorization=t&sessionId=s", "127.0.0.1:8085"),
            ("https://idv.example.com/a/b/mobile?authorization=t&sessionId=s", "idv.example.com"),
            ("HTTPS://[::1]:8085/mobile?sessionId=s&authorization=%20%2B", "[::1]:8085"),
        ] {
            assert_eq!(InnerLink::read(url), Ok(InnerLink { url, host }));
        }
    }

    #[test]
    fn links_elsewhere_are_not() {
        use BadInnerLink::{Elsewhere, Incomplete, NoAddress};
        for (url, why) in [
            ("javascript:alert(1)//mobile?authorization=t&sessionId=s", NoAddress),
            ("javascript://x/mobile?authorization=t&sessionId=s", NoAddress),
            ("data:text/html,x", NoAddress),
            ("//evil.example/mobile?authorization=t&sessionId=s", NoAddress),
            ("/mobile?authorization=t&sessionId=s", NoAddress),
            (" http://a/mobile?authorization=t&sessionId=s", NoAddress),
            ("http:///mobile?authorization=t&sessionId=s", NoAddress),
            ("http://good.example@evil.example/mobile?authorization=t&sessionId=s", NoAddress),
            ("http://evil.example\\@good.example/mobile?authorization=t&sessionId=s", NoAddress),
            ("http://a/mobile?authorization=t t&sessionId=s", NoAddress),
            ("http://a/mobile?authorization=é&sessionId=s", NoAddress),
            ("http://a/mobile?authorization=\"&sessionId=s", NoAddress),
            ("http://evil.example/login?authorization=t&sessionId=s", Elsewhere),
            ("http://evil.example/xmobile?authorization=t&sessionId=s", Elsewhere),
            ("http://evil.example/?x=/mobile", Elsewhere),
            ("http://evil.example/#/mobile?authorization=t&sessionId=s", Elsewhere),
            ("http://evil.example/mobile", Elsewhere),
            ("http://a/mobile?authorization=t", Incomplete),
            ("http://a/mobile?authorization=&sessionId=s", Incomplete),
            ("http://a/mobile?authorization=t#&sessionId=s", Incomplete),
            ("http://a/mobile?authorization=%zz&sessionId=s", Incomplete),
        ] {
            assert_eq!(InnerLink::read(url), Err(why), "{url}");
        }
    }
}
