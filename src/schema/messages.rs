//! The JSON Schemas of the messages, for code generators and validators that read no AsyncAPI.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::message::schema;

/// The draft that the schemas are written in.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";

/// A message that has a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Message {
    /// verification.requested, as a bare object
    Request,
    /// verification.requested, as a CloudEvent
    RequestEvent,
    /// verification.ended, as a bare object
    Ending,
    /// verification.ended, as a CloudEvent
    EndingEvent,
    /// handoff.ready
    Ready,
    /// handoff.failed
    Failed,
}

impl Message {
    /// What generators name its type.
    fn title(self) -> &'static str {
        match self {
            Self::Request => "VerificationRequest",
            Self::RequestEvent => "VerificationRequestedEvent",
            Self::Ending => "VerificationEnding",
            Self::EndingEvent => "VerificationEndedEvent",
            Self::Ready => "HandoffReadyEvent",
            Self::Failed => "HandoffFailedEvent",
        }
    }

    fn schema(self) -> Value {
        let mut schema = match self {
            Self::Request => schema::request(),
            Self::RequestEvent => schema::request_in_cloud_event(),
            Self::Ending => schema::ending(),
            Self::EndingEvent => schema::ending_in_cloud_event(),
            Self::Ready => schema::ready(),
            Self::Failed => schema::failed(),
        };
        schema["title"] = self.title().into();
        schema
    }
}

/// The schema of one message, or one schema that takes each of them and holds the others' definitions.
pub(crate) fn json_schema(message: Option<Message>) -> Value {
    if let Some(message) = message {
        let mut schema = json!({ "$schema": DRAFT });
        if let (Some(all), Value::Object(own)) = (schema.as_object_mut(), message.schema()) {
            all.extend(own);
        }
        return schema;
    }
    let all = Message::value_variants();
    let definitions = all.iter().map(|message| (message.title().to_owned(), message.schema()));
    let references =
        all.iter().map(|message| json!({ "$ref": format!("#/definitions/{}", message.title()) }));
    json!({
        "$schema": DRAFT,
        "title": "HandoffMessage",
        "anyOf": references.collect::<Vec<_>>(),
        "definitions": definitions.collect::<serde_json::Map<_, _>>(),
    })
}
