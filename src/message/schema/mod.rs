//! JSON Schemas of what is on the wire, drawn from the types.
//!
//! Events are described by the types they are made of. Requests are read by hand, so that every problem
//! is named and no digit is lost; they are described by types that mirror the reference's table, and tests
//! hold the reader against them. What a schema cannot say, the descriptions do: lengths in bytes, and
//! that no key of the table may be given twice.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    REQUESTED,
    event::{EventBody, EventEnvelope, FAILED, READY},
};

/// What a request asks for. Unknown fields are ignored, `null` is the same as leaving a field out, and one
/// of these fields given twice makes the request invalid.
#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "only described")]
struct Data {
    /// Who is to be verified: 1 to 256 bytes of UTF-8, no control characters.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$"))]
    user_id: String,
    /// By which workflow: 1 to 128 bytes of UTF-8. Without it the worker's default counts; where there is
    /// none, the request is invalid.
    #[schemars(length(min = 1, max = 128))]
    workflow_id: Option<String>,
    /// Passed on to the platform: at most 16,384 bytes as it stands. An `externalUserId` in it is dropped.
    metadata: Option<Map<String, Value>>,
    /// The language of the pages, passed on as it is.
    locale: Option<String>,
    /// Make a new session even if there is a live link.
    renew: Option<bool>,
    /// RFC 3339. After it nobody waits, and no session is made.
    #[schemars(extend("format" = "date-time"))]
    expires_at: Option<String>,
}

/// A CloudEvent 1.0 in structured mode around a request. Other attributes are ignored.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only described")]
struct CloudEvent {
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
    data: Data,
}

/// A request that is the bare data object.
pub fn request() -> Value {
    let mut schema = read::<Data>();
    // By this attribute a body is taken for a CloudEvent.
    schema["not"] = json!({
        "required": ["specversion"],
        "properties": { "specversion": { "not": { "type": "null" } } },
    });
    schema
}

/// A request in a CloudEvent.
pub fn request_in_cloud_event() -> Value {
    read::<CloudEvent>()
}

/// `handoff.ready`.
pub fn ready() -> Value {
    event(READY, 0)
}

/// `handoff.failed`.
pub fn failed() -> Value {
    event(FAILED, 1)
}

fn event(kind: &str, variant: usize) -> Value {
    let mut schema = written::<EventEnvelope<'_>>();
    let data = written::<EventBody<'_>>()["anyOf"][variant].take();
    let described = schema["properties"]["type"].take();
    schema["properties"]["type"] =
        json!({ "description": described["description"], "const": kind });
    schema["properties"]["data"] = data;
    schema
}

/// As it is read: what may be absent is not required.
fn read<T: JsonSchema>() -> Value {
    generate::<T>(SchemaSettings::draft07().for_deserialize())
}

/// As it is written: what is always there is required.
fn written<T: JsonSchema>() -> Value {
    generate::<T>(SchemaSettings::draft07().for_serialize())
}

fn generate<T: JsonSchema>(settings: SchemaSettings) -> Value {
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    let mut schema = schema.to_value();
    unwrapped(&mut schema);
    schema
}

/// Descriptions are wrapped where the code is; on a page they are not.
fn unwrapped(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    value => unwrapped(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(unwrapped),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
