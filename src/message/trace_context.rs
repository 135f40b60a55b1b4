//! W3C Trace Context: the headers `traceparent` and `tracestate`.

/// A trace context: received with a message, or new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
    /// Whether `parent` names an existing span.
    continued: bool,
}

impl TraceContext {
    /// Continues the trace of the headers, or starts a new one if they are missing or invalid.
    pub fn from_headers(parent: Option<&[u8]>, state: Option<&[u8]>) -> Self {
        match parent.and_then(valid_parent) {
            Some(parent) => Self { parent, state: state.and_then(valid_state), continued: true },
            // Without its parent, a `tracestate` has no meaning.
            None => Self { parent: new_parent(), state: None, continued: false },
        }
    }

    /// The `traceparent` header.
    pub(crate) fn parent(&self) -> &str {
        &self.parent
    }

    /// Returns the same trace with another span as its parent.
    pub(crate) fn with_parent(&self, parent: String) -> Self {
        Self { parent, state: self.state.clone(), continued: true }
    }

    /// Whether the trace was received, rather than started here.
    pub(crate) fn is_continued(&self) -> bool {
        self.continued
    }

    /// Returns trace id, span id and flags in hexadecimal.
    pub(crate) fn ids(&self) -> Option<(&str, &str, &str)> {
        let mut parts = self.parent.split('-').skip(1);
        Some((parts.next()?, parts.next()?, parts.next()?))
    }

    /// The `tracestate` header, if there is one.
    pub(crate) fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// Starts a trace that is not sampled.
fn new_parent() -> String {
    let trace = uuid::Uuid::new_v4().simple();
    let span = uuid::Uuid::new_v4().simple();
    format!("00-{trace}-{}-00", &span.to_string()[..16])
}

fn valid_parent(header: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(header).ok()?.trim();
    let mut parts = text.split('-');
    let mut part = |length| {
        let part = parts.next()?;
        let hex = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (part.len() == length && hex).then_some(part)
    };
    let [version, trace, span, flags] = [part(2)?, part(32)?, part(16)?, part(2)?];
    // W3C Trace Context, section "Versioning": parse a later version as version 00, and ignore what
    // follows. `ff` is forbidden, and so are ids of zeros.
    let supported = match version {
        "00" => parts.next().is_none(),
        version => version != "ff",
    };
    let non_zero = |id: &str| id.bytes().any(|b| b != b'0');
    let valid = supported && non_zero(trace) && non_zero(span);
    valid.then(|| format!("00-{trace}-{span}-{flags}"))
}

fn valid_state(header: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(header).ok()?.trim();
    let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    (!text.is_empty() && text.len() <= 512 && printable).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn valid_context_is_passed_on_unchanged() {
        let context =
            TraceContext::from_headers(Some(PARENT.as_bytes()), Some(b"vendor=1,other=2"));
        assert_eq!((context.parent(), context.state()), (PARENT, Some("vendor=1,other=2")));
    }

    #[test]
    fn invalid_parent_starts_a_new_trace() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let upper = PARENT.to_uppercase();
        let long = format!("{PARENT}-x");
        let forbidden = PARENT.replacen("00", "ff", 1);
        for wrong in ["", "x", zeros, &upper, &long, &forbidden, "00-\r\n"] {
            let context = TraceContext::from_headers(Some(wrong.as_bytes()), Some(b"a=b"));
            assert_ne!(context.parent(), wrong);
            assert_eq!(
                valid_parent(context.parent().as_bytes()).as_deref(),
                Some(context.parent())
            );
            assert_eq!(context.state(), None);
        }
    }

    #[test]
    fn later_version_is_passed_on_as_version_00() {
        let later = PARENT.replacen("00", "01", 1) + "-\u{1}what the future brings";
        let context = TraceContext::from_headers(Some(later.as_bytes()), None);
        assert_eq!(context.parent(), PARENT);
    }

    #[test]
    fn state_that_no_header_can_carry_is_dropped() {
        for wrong in [&b"a=\nb"[..], b"", b"\xff", &[b'a'; 513]] {
            assert_eq!(
                TraceContext::from_headers(Some(PARENT.as_bytes()), Some(wrong)).state(),
                None
            );
        }
    }
}
