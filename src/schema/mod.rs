//! The AsyncAPI 3.0 document: requests, endings, events, and the exchanges and queues they go through.
//!
//! It is generated from the code that it describes: schemas from the wire types, queue arguments from
//! the topology, example events from the code that makes events.

mod examples;
mod messages;
mod objects;

use serde_json::{Value, json};

pub(crate) use self::{
    messages::{Message, json_schema},
    objects::{definitions, operator_resources},
};
use crate::{
    broker::Topology,
    config::BrokerSettings,
    message::{ENDED, FAILED, READY, REQUESTED, schema},
};

/// The version of AsyncAPI's AMQP 0-9-1 bindings.
const BINDING: &str = "0.3.0";
/// The form of a `traceparent` header.
const TRACE_PARENT: &str = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$";

/// Generates the document for these settings, as YAML.
pub(crate) fn asyncapi(settings: &BrokerSettings) -> Result<String, serde_saphyr::ser::Error> {
    yaml(&document(&Topology::new(settings)))
}

/// Writes a document as YAML.
pub(crate) fn yaml(document: &Value) -> Result<String, serde_saphyr::ser::Error> {
    // One line for each text: a reworded text then changes one line of the file.
    let options =
        serde_saphyr::ser_options! { prefer_block_scalars: false, compact_list_indent: false };
    serde_saphyr::to_string_with_options(document, options)
}

fn document(topology: &Topology) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Takes verification requests from RabbitMQ and answers each with an event, which \
                contains a short-lived link to an identity-verification session, or the reason why there is no \
                link. Forgets links whose verification has ended. Written from the point of view of handoff: it \
                receives requests and endings, and sends events. \
                Exchanges and queues have their default names.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "rabbitmq.example.com",
                "protocol": "amqps",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ 3.10 or later, at HANDOFF_AMQP_URL.",
            },
        },
        "channels": channels(topology),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas() },
    })
}

fn channels(topology: &Topology) -> Value {
    let message = |name: &str| json!({ "$ref": format!("#/components/messages/{name}") });
    let requests =
        || json!({ "bare": message("request"), "cloudEvent": message("requestInCloudEvent") });
    let endings =
        || json!({ "bare": message("ending"), "cloudEvent": message("endingInCloudEvent") });
    let retry = topology.retry_queues().map(|queue| {
        let delay = queue.rsplit('.').next().unwrap_or_default();
        let what = format!("Holds failed requests for {delay} before the next attempt.");
        (format!("retry{delay}"), queue_channel(topology, queue, &what, requests()))
    });
    let mut channels = json!({
        "requests": exchange_channel(REQUESTED, &topology.request_exchange,
            "Publish requests here: persistent, mandatory, with publisher confirms.", requests()),
        "endings": exchange_channel(ENDED, &topology.request_exchange,
            "Publish the ends of verifications here: persistent, mandatory, with publisher confirms and a timestamp.",
            endings()),
        "ready": exchange_channel(READY, &topology.event_exchange,
            "Events with a link. Bind your queue before you publish the first request.",
            json!({ "ready": message("ready") })),
        "failed": exchange_channel(FAILED, &topology.event_exchange,
            "Events of requests that ended without a link. Bind your queue before you publish the first request.",
            json!({ "failed": message("failed") })),
        "requestQueue": queue_channel(topology, topology.request_queue(),
            "The queue that workers consume. Bound to the request exchange with the routing key of requests.", requests()),
        "endedQueue": queue_channel(topology, topology.ended_queue(),
            "The queue of endings. Bound to the request exchange with the routing key of endings.", endings()),
    });
    for (name, channel) in retry {
        channels[name] = channel;
    }
    let what = "Requests that failed, and invalid endings; `handoff dead-letters` lists, replays and drops them.";
    let mut letters = requests();
    letters["ending"] = message("ending");
    letters["endingInCloudEvent"] = message("endingInCloudEvent");
    channels["dead"] = queue_channel(topology, topology.dead_queue(), what, letters);
    channels
}

fn exchange_channel(key: &str, exchange: &str, description: &str, messages: Value) -> Value {
    let exchange =
        json!({ "name": exchange, "type": "topic", "durable": true, "autoDelete": false });
    json!({
        "address": key,
        "description": description,
        "messages": messages,
        "bindings": {
            "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": BINDING },
        },
    })
}

fn queue_channel(topology: &Topology, queue: &str, description: &str, messages: Value) -> Value {
    let binding =
        json!({ "name": queue, "durable": true, "exclusive": false, "autoDelete": false });
    json!({
        "address": queue,
        "description": description,
        "messages": messages,
        "bindings": { "amqp": { "is": "queue", "queue": binding, "bindingVersion": BINDING } },
        "x-queue-arguments": topology.arguments(queue),
    })
}

fn operations() -> Value {
    let send = |channel: &str, summary: &str| {
        json!({
            "action": "send",
            "channel": { "$ref": format!("#/channels/{channel}") },
            "summary": summary,
            "messages": [{ "$ref": format!("#/channels/{channel}/messages/{channel}") }],
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "bindingVersion": BINDING } },
        })
    };
    json!({
        "receiveRequest": {
            "action": "receive",
            "channel": { "$ref": "#/channels/requests" },
            "summary": "Makes a link, or finds a live one. Acks a request only after RabbitMQ has confirmed \
                its event or copy.",
            "messages": [
                { "$ref": "#/channels/requests/messages/bare" },
                { "$ref": "#/channels/requests/messages/cloudEvent" },
            ],
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING } },
        },
        "receiveEnding": {
            "action": "receive",
            "channel": { "$ref": "#/channels/endings" },
            "summary": "Forgets the link, so that the next request gets a new one. Publishes no event.",
            "messages": [
                { "$ref": "#/channels/endings/messages/bare" },
                { "$ref": "#/channels/endings/messages/cloudEvent" },
            ],
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING } },
        },
        "sendReady": send("ready", "Publishes the link. May be published more than once, with the same id."),
        "sendFailed": send("failed", "Publishes why there is no link. May be published more than once, with the same id."),
    })
}

fn messages() -> Value {
    let correlation = json!({
        "description": "The AMQP property of that name: copied from the request to its event, or the request id \
            if the request has none.",
        "location": "$message.header#/correlation_id",
    });
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let message = |kind: &str, name: &str, title: &str, payload: &str, examples: Value| {
        let is_bare = ["request", "ending"].contains(&payload);
        let headers = match kind {
            REQUESTED => "requestHeaders",
            ENDED => "endingHeaders",
            _ => "eventHeaders",
        };
        let mut message = json!({
            "name": name,
            "title": title,
            "contentType": if is_bare { "application/json" } else { "application/cloudevents+json" },
            "headers": schema(headers),
            "payload": schema(payload),
            "bindings": { "amqp": { "messageType": kind, "bindingVersion": BINDING } },
            "examples": examples,
        });
        // An ending has no event.
        if kind != ENDED {
            message["correlationId"] = correlation.clone();
        }
        message
    };
    let request = |name: &str, examples: Value| {
        message(REQUESTED, name, "Request to verify a person", name, examples)
    };
    let ending =
        |name: &str, examples: Value| message(ENDED, name, "End of a verification", name, examples);
    json!({
        "request": request("request", examples::request()),
        "requestInCloudEvent": request("requestInCloudEvent", examples::request_in_cloud_event()),
        "ending": ending("ending", examples::ending()),
        "endingInCloudEvent": ending("endingInCloudEvent", examples::ending_in_cloud_event()),
        "ready": message(READY, READY, "A link is ready", "ready", examples::ready()),
        "failed": message(FAILED, FAILED, "No link", "failed", examples::failed()),
    })
}

fn schemas() -> Value {
    let trace_parent = json!({
        "type": "string",
        "pattern": TRACE_PARENT,
        "description": "W3C Trace Context, propagated to both platform calls and to the event.",
    });
    let trace_state = json!({ "type": "string", "maxLength": 512 });
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "request": schema::request(),
        "requestInCloudEvent": schema::request_in_cloud_event(),
        "ending": schema::ending(),
        "endingInCloudEvent": schema::ending_in_cloud_event(),
        "ready": schema::ready(),
        "failed": schema::failed(),
        "requestHeaders": {
            "type": "object",
            "description": "AMQP headers, and the AMQP properties that the worker reads. The worker sets \
                headers that begin with `x-handoff-` on copies and dead letters.",
            "properties": {
                "message_id": text("The request id of a bare request. Send one: without it, a redelivered \
                    request gets another id."),
                "correlation_id": text("Copied to the event."),
                "timestamp": { "type": "integer", "description": "Time of publishing, in seconds since 1970." },
                "traceparent": trace_parent,
                "tracestate": trace_state,
                "x-handoff-request-id": text("The request id."),
                "x-handoff-attempt": { "type": "integer", "minimum": 1, "description": "Attempts made so far." },
                "x-handoff-deferred": { "type": "integer", "minimum": 1, "description": "How often the platform \
                    has deferred this request alone (`Retry-After`)." },
                "x-handoff-event-refused": { "type": "boolean", "description": "On copies and dead letters: true \
                    once RabbitMQ has refused `handoff.ready`, which a queue may have received all the same." },
                "x-handoff-queue": text("On dead letters: the queue that the request comes from."),
                "x-handoff-reason": text("On dead letters: the `reason.code` of the event, or `event_refused`, \
                    for which there is no event."),
                "x-handoff-detail": text("On dead letters: the `reason.message` of the event."),
                "x-handoff-failed-at": { "type": "string", "format": "date-time", "description": "On dead letters." },
            },
        },
        "endingHeaders": {
            "type": "object",
            "description": "AMQP headers, and the AMQP properties that the worker reads.",
            "properties": {
                "message_id": text("Names a bare ending in logs and dead letters."),
                "timestamp": { "type": "integer", "description": "When the verification ended, in seconds since \
                    1970. Set it: of an ending without a `sessionId`, a link whose session was asked for in a later \
                    second is kept. Without it, the time of the first receipt counts." },
                "x-handoff-received": { "type": "integer", "description": "On copies: when a worker first received \
                    the ending, in milliseconds since 1970." },
                "x-handoff-queue": text("On dead letters: the queue that the ending comes from."),
                "x-handoff-reason": text("On dead letters: `invalid_ending`."),
                "x-handoff-detail": text("On dead letters: the rules that the ending breaks."),
                "x-handoff-failed-at": { "type": "string", "format": "date-time", "description": "On dead letters." },
            },
        },
        "eventHeaders": {
            "type": "object",
            "description": "AMQP headers and properties.",
            "required": ["message_id", "correlation_id", "type", "timestamp", "app_id", "traceparent"],
            "properties": {
                "message_id": { "type": "string", "format": "uuid", "description": "The event's `id`." },
                "correlation_id": text("The request's, or else the request id; at most 255 bytes."),
                "type": { "type": "string", "enum": [READY, FAILED] },
                "timestamp": { "type": "integer", "description": "The event's `time`, in seconds since 1970." },
                "app_id": { "const": "handoff" },
                "traceparent": trace_parent,
                "tracestate": trace_state,
            },
        },
    })
}

#[cfg(test)]
mod tests;
