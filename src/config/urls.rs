//! Lists of URLs, and URLs of addresses.

use std::{fmt, sync::Arc};

use url::Url;

use super::setting::{ParseResult, ensure};

pub(super) const EMPTY_ELEMENT: &str = "has an empty element: remove the comma";

/// Parses the elements of a list. `check_scheme` checks that each begins as it must.
pub(super) fn url_list<T>(
    text: &str,
    check_scheme: fn(&str) -> ParseResult<()>,
    parse: impl Fn(&str) -> ParseResult<T>,
) -> ParseResult<Arc<[T]>> {
    // First: an unencoded comma in a password makes two elements, and this is the error that says so.
    for element in elements(text) {
        ensure(!element.is_empty(), EMPTY_ELEMENT)?;
        check_scheme(element)?;
    }
    elements(text).map(parse).collect()
}

pub(super) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// The URL of a host, which may be an IPv6 address without brackets.
pub(super) fn address(scheme: impl fmt::Display, host: &str, port: u16) -> Option<Url> {
    let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
    Url::parse(&format!("{scheme}://{open}{host}{close}:{port}")).ok()
}
