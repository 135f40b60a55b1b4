//! The AsyncAPI 3.0 document: requests, events, and the exchanges and queues they go through.
//!
//! What it says is taken from where it is so: schemas from the wire types, queue arguments from the
//! topology, examples from the code that makes events.

mod examples;

use serde_json::{Value, json};

use crate::{
    broker::Topology,
    config::{BrokerSettings, ConfigErrors},
    message::{FAILED, READY, REQUESTED, schema},
};

/// The version of AsyncAPI's way to describe AMQP 0-9-1.
const BINDING: &str = "0.3.0";
/// How traces go along, on requests and on events.
const TRACE_PARENT: &str = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$";

/// Why the document could not be generated: a bug in the defaults or in the document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error(transparent)]
    Defaults(#[from] ConfigErrors),
    #[error("cannot write the document as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// Generates the document, as YAML.
pub(crate) fn asyncapi() -> Result<String, SchemaError> {
    let topology = Topology::new(&BrokerSettings::defaults()?);
    // Each text stays on one line: folded blocks would change with the width of the words.
    let options =
        serde_saphyr::ser_options! { prefer_block_scalars: false, compact_list_indent: false };
    Ok(serde_saphyr::to_string_with_options(&document(&topology), options)?)
}

fn document(topology: &Topology) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": env!("CARGO_PKG_NAME"),
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Takes verification requests from RabbitMQ and answers each with an event, which \
                carries a short-lived link to an identity-verification session, or says why there is none. \
                Written from the point of view of handoff: it receives requests and sends events. Names of \
                exchanges and queues are those that hold by default.",
            "license": { "name": env!("CARGO_PKG_LICENSE") },
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "rabbitmq.example.com",
                "protocol": "amqps",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ 3.10 or later, as HANDOFF_AMQP_URL names it.",
            },
        },
        "channels": channels(topology),
        "operations": operations(),
        "components": { "messages": messages(), "schemas": schemas() },
    })
}

fn channels(topology: &Topology) -> Value {
    let requests = || {
        json!({
            "bare": { "$ref": "#/components/messages/request" },
            "cloudEvent": { "$ref": "#/components/messages/requestInCloudEvent" },
        })
    };
    let retry = topology.retry_queues().iter().map(|queue| {
        let delay = queue.rsplit('.').next().unwrap_or_default();
        let what = format!("Where a failed request waits for {delay} before it is tried again.");
        (format!("retry{delay}"), queue_channel(topology, queue, &what, requests()))
    });
    let mut channels = json!({
        "requests": exchange_channel(REQUESTED, topology.request_exchange(),
            "Where requests are published to: persistent, mandatory, with publisher confirms.", requests()),
        "ready": exchange_channel(READY, topology.event_exchange(),
            "Links. Bind a queue of your own, before the first request comes.",
            json!({ "ready": { "$ref": "#/components/messages/ready" } })),
        "failed": exchange_channel(FAILED, topology.event_exchange(),
            "Requests that ended without a link. Bind a queue of your own.",
            json!({ "failed": { "$ref": "#/components/messages/failed" } })),
        "requestQueue": queue_channel(topology, topology.request_queue(),
            "What the worker consumes. Bound to the request exchange by the routing key of requests.", requests()),
    });
    for (name, channel) in retry {
        channels[name] = channel;
    }
    channels["dead"] = queue_channel(
        topology,
        topology.dead_queue(),
        "What could not be served; `handoff dead-letters` looks through it.",
        requests(),
    );
    channels
}

fn exchange_channel(key: &str, exchange: &str, description: &str, messages: Value) -> Value {
    json!({
        "address": key,
        "description": description,
        "messages": messages,
        "bindings": { "amqp": {
            "is": "routingKey",
            "exchange": { "name": exchange, "type": "topic", "durable": true, "autoDelete": false },
            "bindingVersion": BINDING,
        } },
    })
}

fn queue_channel(topology: &Topology, queue: &str, description: &str, messages: Value) -> Value {
    json!({
        "address": queue,
        "description": description,
        "messages": messages,
        "bindings": { "amqp": {
            "is": "queue",
            "queue": { "name": queue, "durable": true, "exclusive": false, "autoDelete": false },
            "bindingVersion": BINDING,
        } },
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
            "summary": "Makes a link, or finds the one there is. A request is acked only once RabbitMQ has \
                confirmed what comes of it.",
            "messages": [
                { "$ref": "#/channels/requests/messages/bare" },
                { "$ref": "#/channels/requests/messages/cloudEvent" },
            ],
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING } },
        },
        "sendReady": send("ready", "Tells the link. May come more than once, with the same id."),
        "sendFailed": send("failed", "Tells why there is no link. May come more than once, with the same id."),
    })
}

fn messages() -> Value {
    let correlation = json!({
        "description": "Copied from the request to its event; the request id where there is none. It is the \
            AMQP property of that name.",
        "location": "$message.header#/correlation_id",
    });
    let request = |name: &str, content_type: &str, schema: &str, examples: Value| {
        json!({
            "name": name,
            "title": "A person is to be verified",
            "contentType": content_type,
            "headers": { "$ref": "#/components/schemas/requestHeaders" },
            "payload": { "$ref": format!("#/components/schemas/{schema}") },
            "correlationId": correlation,
            "bindings": { "amqp": { "messageType": REQUESTED, "bindingVersion": BINDING } },
            "examples": examples,
        })
    };
    let event = |kind: &str, title: &str, schema: &str, examples: Value| {
        json!({
            "name": kind,
            "title": title,
            "contentType": "application/cloudevents+json",
            "headers": { "$ref": "#/components/schemas/eventHeaders" },
            "payload": { "$ref": format!("#/components/schemas/{schema}") },
            "correlationId": correlation,
            "bindings": { "amqp": { "messageType": kind, "bindingVersion": BINDING } },
            "examples": examples,
        })
    };
    json!({
        "request": request("request", "application/json", "request", examples::request()),
        "requestInCloudEvent": request("requestInCloudEvent", "application/cloudevents+json",
            "requestInCloudEvent", examples::request_in_cloud_event()),
        "ready": event(READY, "A link is ready", "ready", examples::ready()),
        "failed": event(FAILED, "There is no link", "failed", examples::failed()),
    })
}

fn schemas() -> Value {
    let trace_parent = json!({
        "type": "string",
        "pattern": TRACE_PARENT,
        "description": "W3C Trace Context, passed on to both platform calls and to the event.",
    });
    let trace_state = json!({ "type": "string", "maxLength": 512 });
    json!({
        "request": schema::request(),
        "requestInCloudEvent": schema::request_in_cloud_event(),
        "ready": schema::ready(),
        "failed": schema::failed(),
        "requestHeaders": {
            "type": "object",
            "description": "AMQP headers, and the AMQP properties that matter. Headers that begin with \
                `x-handoff-` are the worker's own, on copies and dead letters.",
            "properties": {
                "message_id": {
                    "type": "string",
                    "description": "The request id of a bare request. Send one: without it a request that is \
                        redelivered gets another id.",
                },
                "correlation_id": { "type": "string", "description": "Copied to the event." },
                "timestamp": { "type": "integer", "description": "When it was published, in seconds since 1970." },
                "traceparent": trace_parent,
                "tracestate": trace_state,
                "x-handoff-request-id": { "type": "string", "description": "The request id." },
                "x-handoff-attempt": { "type": "integer", "minimum": 1, "description": "Attempts made so far." },
                "x-handoff-reason": {
                    "type": "string",
                    "description": "On dead letters: the `reason.code` of the event.",
                },
                "x-handoff-detail": {
                    "type": "string",
                    "description": "On dead letters: the `reason.message` of the event.",
                },
                "x-handoff-failed-at": { "type": "string", "format": "date-time", "description": "On dead letters." },
            },
        },
        "eventHeaders": {
            "type": "object",
            "description": "AMQP headers and properties.",
            "required": ["message_id", "correlation_id", "type", "timestamp", "app_id", "traceparent"],
            "properties": {
                "message_id": { "type": "string", "format": "uuid", "description": "The event's `id`." },
                "correlation_id": {
                    "type": "string",
                    "description": "The request's, else the request id; at most 255 bytes.",
                },
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
