//! The body of a message: a bare data object, or a CloudEvent around one.

use serde_json::value::RawValue;

use super::{
    RequestId,
    cloud_event::CloudEvent,
    decode::{self, Fields},
    diagnosis,
};

/// UTF-8's byte order mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text of `workflowId`'s rule where neither the message nor the worker has one.
pub(super) const NO_WORKFLOW: &str =
    "`workflowId` is missing, and the worker has no default for it";

/// What a body contains.
pub(super) struct Body<'a> {
    /// The `id` of the CloudEvent, if the body is one.
    pub(super) id: Option<RequestId>,
    /// The body is a CloudEvent about the end of a verification.
    pub(super) is_ending: bool,
    /// The data object, or the rule that the body breaks.
    pub(super) data: Result<Data<'a>, String>,
}

/// The text of a data object.
pub(super) struct Data<'a> {
    pub(super) text: &'a str,
    /// Where it stands: `body` or `data`.
    place: &'static str,
}

impl<'a> Body<'a> {
    /// Reads a body of at most `max_bytes`. `expected`: the `type` that a CloudEvent must have.
    pub(super) fn read(body: &'a [u8], max_bytes: usize, expected: &str) -> Self {
        let text = match check(body, max_bytes) {
            Ok(text) => text,
            Err(message) => return Self { id: None, is_ending: false, data: Err(message) },
        };
        match CloudEvent::detect(text, expected) {
            None => Self { id: None, is_ending: false, data: Ok(Data { text, place: "body" }) },
            Some(CloudEvent { id, is_ending, data }) => {
                Self { id, is_ending, data: data.map(|text| Data { text, place: "data" }) }
            }
        }
    }
}

impl<'a> Data<'a> {
    /// Reads the wanted fields. The first problems are those that appear more than once.
    pub(super) fn fields<const N: usize>(
        &self,
        wanted: [&'static str; N],
    ) -> Result<(Fields<'a, N>, Problems), String> {
        let fields = decode::fields(self.text, wanted).ok_or_else(|| {
            format!("the {} {}", self.place, diagnosis::why_not_json_object(self.text))
        })?;
        let repeated = fields.repeated.iter().map(|key| format!("`{key}` appears more than once"));
        let problems = Problems(repeated.collect());
        Ok((fields, problems))
    }
}

/// The rules that a message breaks.
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// Parses a value if there is one, and adds the rule it breaks.
    pub(super) fn check<T>(
        &mut self,
        value: Option<&RawValue>,
        parse: impl FnOnce(&RawValue) -> Result<T, String>,
    ) -> Option<T> {
        parse(value?).map_err(|problem| self.0.push(problem)).ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, as one message.
    pub(super) fn text(&self) -> String {
        self.0.join("; ")
    }
}

/// Checks what a body must fulfil before it is parsed, and skips a byte order mark.
fn check(body: &[u8], max_bytes: usize) -> Result<&str, String> {
    if body.len() > max_bytes {
        return Err(format!(
            "the body is larger than {max_bytes} bytes (HANDOFF_MAX_MESSAGE_BYTES)"
        ));
    }
    // .NET's `Encoding.UTF8` and Windows' editors write one. RFC 8259, section 8.1, lets a parser skip it.
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let text = std::str::from_utf8(body).map_err(|error| {
        format!("the body {}", diagnosis::why_not_utf8(body, error.valid_up_to()))
    })?;
    if decode::is_too_deep(text) {
        return Err("the body nests arrays and objects more than 128 levels deep".to_owned());
    }
    Ok(text)
}
