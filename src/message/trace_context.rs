//! W3C Trace Context: the two headers that tie a request's calls and events into one trace.

/// `traceparent` and `tracestate` as they were received, or a `traceparent` of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
    /// It came with a message, so that there is a span it names.
    continued: bool,
}

impl TraceContext {
    /// Continues what the headers say; where they say nothing valid, a new trace begins.
    pub fn from_headers(parent: Option<&[u8]>, state: Option<&[u8]>) -> Self {
        match parent.and_then(valid_parent) {
            // A state without its parent means nothing, so it goes when the parent does.
            Some(parent) => Self { parent, state: state.and_then(valid_state), continued: true },
            None => Self { parent: new_parent(), state: None, continued: false },
        }
    }

    /// The `traceparent` header.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The same trace, continued from another span.
    pub fn with_parent(&self, parent: String) -> Self {
        Self { parent, state: self.state.clone(), continued: true }
    }

    /// Whether the headers named a trace.
    pub fn is_continued(&self) -> bool {
        self.continued
    }

    /// The ids of trace and span, and the flags, each as hexadecimal digits.
    pub fn ids(&self) -> Option<(&str, &str, &str)> {
        let mut parts = self.parent.split('-').skip(1);
        Some((parts.next()?, parts.next()?, parts.next()?))
    }

    /// The `tracestate` header, if there is one.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// A trace that nobody asked to be sampled.
fn new_parent() -> String {
    let (trace, span) = (uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
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
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let known = version == "00" && parts.next().is_none();
    // A later version begins with the same parts, and is passed on as the version that we know.
    let later = version != "00" && version != "ff";
    let real = |id: &str| id.bytes().any(|b| b != b'0');
    let valid = (known || later) && real(trace) && real(span);
    valid.then(|| format!("00-{trace}-{span}-{flags}"))
}

fn valid_state(header: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(header).ok()?.trim();
    let sendable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    (!text.is_empty() && text.len() <= 512 && sendable).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_context_goes_on_as_it_came() {
        let context =
            TraceContext::from_headers(Some(PARENT.as_bytes()), Some(b"vendor=1,other=2"));
        assert_eq!((context.parent(), context.state()), (PARENT, Some("vendor=1,other=2")));
    }

    #[test]
    fn an_invalid_parent_begins_a_new_trace() {
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
    fn a_later_version_is_passed_on_as_the_one_we_know() {
        let later = PARENT.replacen("00", "01", 1) + "-\u{1}what the future brings";
        let context = TraceContext::from_headers(Some(later.as_bytes()), None);
        assert_eq!(context.parent(), PARENT);
    }

    #[test]
    fn a_state_that_no_header_can_carry_is_dropped() {
        for wrong in [&b"a=\nb"[..], b"", b"\xff", &[b'a'; 513]] {
            assert_eq!(
                TraceContext::from_headers(Some(PARENT.as_bytes()), Some(wrong)).state(),
                None
            );
        }
    }
}
