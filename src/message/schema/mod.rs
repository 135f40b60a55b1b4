//! JSON Schemas of requests, endings and events.
//!
//! The schemas of events come from the types that are serialized. Requests and endings have no such
//! types: `request.rs` and `ending.rs` decode them by hand, to report every problem and keep every digit of a number. Types
//! in this file describe them, and tests compare the decoder with the schemas. The descriptions have
//! the rules that a schema cannot express: lengths in bytes, and no repeated keys.

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};

use super::{
    ENDED, REQUESTED,
    event::{EventBody, EventEnvelope, FAILED, READY},
};

/// A request. Unknown fields are ignored, `null` means absent, and a field that appears more than once
/// makes the request invalid.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes the wire format only")]
struct RequestSchema {
    /// The user to verify: 1 to 256 bytes of UTF-8 without control characters.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    user_id: String,
    /// The verification workflow: 1 to 128 bytes of UTF-8. Required if the worker has no default
    /// (`HANDOFF_IDV_WORKFLOW_ID`).
    #[schemars(length(min = 1, max = 128))]
    workflow_id: Option<String>,
    /// Passed on to the platform: at most 16,384 bytes of JSON text. The worker replaces `externalUserId`.
    metadata: Option<Map<String, Value>>,
    /// The language of the platform's pages, passed on unchanged.
    locale: Option<String>,
    /// Make a new session even if a live link exists.
    renew: Option<bool>,
    /// RFC 3339. After it, the worker makes no session and the request fails.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
}

/// A CloudEvent 1.0 in structured mode around a request. Other attributes are ignored.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes the wire format only")]
struct RequestCloudEventSchema {
    #[schemars(extend("const" = "1.0"))]
    specversion: String,
    /// The request id.
    #[schemars(length(min = 1))]
    id: String,
    #[schemars(length(min = 1))]
    source: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = REQUESTED))]
    kind: String,
    data: RequestSchema,
}

/// The end of a verification: a session, or a user whose workflow is known, or both. Unknown fields are ignored,
/// `null` means absent, and a field that appears more than once makes the ending invalid.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes the wire format only")]
struct EndingSchema {
    /// The user whose verification is over: 1 to 256 bytes of UTF-8 without control characters.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    user_id: Option<String>,
    /// The verification workflow: 1 to 128 bytes of UTF-8. Without a `sessionId`, required if the worker has no
    /// default (`HANDOFF_IDV_WORKFLOW_ID`).
    #[schemars(length(min = 1, max = 128))]
    workflow_id: Option<String>,
    /// The session: 1 to 1,024 bytes. With `userId`, the user's link is forgotten only if it belongs to this session.
    #[schemars(extend("type" = ["string", "number", "null"], "minLength" = 1, "maxLength" = 1_024))]
    session_id: Option<Value>,
}

/// A CloudEvent 1.0 in structured mode around an ending. Other attributes, `time` included, are ignored.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes the wire format only")]
struct EndingCloudEventSchema {
    #[schemars(extend("const" = "1.0"))]
    specversion: String,
    /// Names the ending in logs.
    #[schemars(length(min = 1))]
    id: String,
    #[schemars(length(min = 1))]
    source: String,
    #[serde(rename = "type")]
    #[schemars(extend("const" = ENDED))]
    kind: String,
    data: EndingSchema,
}

/// The schema of a request as a bare object.
pub(crate) fn request() -> Value {
    bare(for_reading::<RequestSchema>())
}

/// The schema of an ending as a bare object.
pub(crate) fn ending() -> Value {
    let mut schema = bare(for_reading::<EndingSchema>());
    schema["anyOf"] = one_is_given();
    schema
}

/// The schema of an ending in a CloudEvent.
pub(crate) fn ending_in_cloud_event() -> Value {
    let mut schema = for_reading::<EndingCloudEventSchema>();
    schema["properties"]["data"]["anyOf"] = one_is_given();
    schema
}

/// Requires a user or a session. Names the types rather than excluding `null`: from `not`, generators make a type
/// that no value has (json-schema-to-typescript 16) or one that admits `null` (datamodel-code-generator 0.89).
fn one_is_given() -> Value {
    json!([
        { "required": ["userId"], "properties": { "userId": { "type": "string" } } },
        { "required": ["sessionId"], "properties": { "sessionId": { "type": ["string", "number"] } } },
    ])
}

/// `specversion` makes a body a CloudEvent.
fn bare(mut schema: Value) -> Value {
    schema["not"] = json!({
        "required": ["specversion"],
        "properties": { "specversion": { "not": { "type": "null" } } },
    });
    schema
}

/// The schema of a request in a CloudEvent.
pub(crate) fn request_in_cloud_event() -> Value {
    for_reading::<RequestCloudEventSchema>()
}

/// The schema of `handoff.ready`.
pub(crate) fn ready() -> Value {
    event(READY, 0)
}

/// The schema of `handoff.failed`.
pub(crate) fn failed() -> Value {
    event(FAILED, 1)
}

fn event(kind: &str, variant: usize) -> Value {
    let mut schema = for_writing::<EventEnvelope<'_>>();
    let data = for_writing::<EventBody<'_>>()["anyOf"][variant].take();
    let kind_schema = schema["properties"]["type"].take();
    schema["properties"]["type"] =
        json!({ "type": "string", "description": kind_schema["description"], "const": kind });
    schema["properties"]["data"] = data;
    schema
}

/// Requires only the fields that must be present when a value is decoded.
fn for_reading<T: JsonSchema>() -> Value {
    generate::<T>(SchemaSettings::draft07().for_deserialize())
}

/// Requires all fields that are present when a value is encoded.
fn for_writing<T: JsonSchema>() -> Value {
    generate::<T>(SchemaSettings::draft07().for_serialize())
}

fn generate<T: JsonSchema>(mut settings: SchemaSettings) -> Value {
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    // Doc comments wrap their lines, which descriptions must not.
    let settings = settings.with_transform(RecursiveTransform(|schema: &mut Schema| {
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = text.replace('\n', " ");
        }
        // Rust's names of integers are no formats of JSON Schema: validators reject them (Ajv 8, strict).
        if schema.get("type").is_some_and(|kind| kind == "integer") {
            schema.remove("format");
        }
    }));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.to_value()
}

#[cfg(test)]
mod tests;
