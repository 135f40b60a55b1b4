//! The topology for tools that declare it ahead of the worker: RabbitMQ's definitions, and resources of
//! RabbitMQ's messaging topology operator for Kubernetes.
//!
//! Both are for workers with `HANDOFF_DECLARE_TOPOLOGY=false`, so they use the names that the worker's
//! settings give, and the virtual host of its URL.

use serde_json::{Value, json};

use crate::{
    broker::Topology,
    message::{ENDED, REQUESTED},
};

/// The resources' API, which the operator has served since its release 1.0.
const API: &str = "rabbitmq.com/v1beta1";

/// A document for `rabbitmqctl import_definitions`, the management API, or `load_definitions`. It holds
/// exchanges, queues and bindings alone: importing it changes no user and no policy.
///
/// <https://www.rabbitmq.com/docs/definitions>
pub(crate) fn definitions(topology: &Topology, vhost: &str) -> Value {
    let exchanges = exchanges(topology).map(|name| {
        json!({
            "name": name,
            "vhost": vhost,
            "type": "topic",
            "durable": true,
            "auto_delete": false,
            "internal": false,
            "arguments": {},
        })
    });
    let queues = topology.all_queues().map(|name| {
        json!({
            "name": name,
            "vhost": vhost,
            "durable": true,
            "auto_delete": false,
            "arguments": topology.arguments(name),
        })
    });
    let bindings = bindings(topology).map(|(queue, key)| {
        json!({
            "source": topology.request_exchange,
            "vhost": vhost,
            "destination": queue,
            "destination_type": "queue",
            "routing_key": key,
            "arguments": {},
        })
    });
    json!({
        "exchanges": exchanges.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
        "bindings": bindings.into_iter().collect::<Vec<_>>(),
    })
}

/// Resources of RabbitMQ's messaging topology operator, one for each object, for a `RabbitmqCluster` of
/// this name.
///
/// <https://www.rabbitmq.com/kubernetes/operator/using-topology-operator>
pub(crate) fn operator_resources(topology: &Topology, vhost: &str, cluster: &str) -> Vec<Value> {
    let resource = |kind: &str, name: String, mut spec: Value| {
        spec["vhost"] = vhost.into();
        spec["rabbitmqClusterReference"] = json!({ "name": cluster });
        json!({ "apiVersion": API, "kind": kind, "metadata": { "name": name }, "spec": spec })
    };
    let exchanges = exchanges(topology).map(|name| {
        let spec = json!({ "name": name, "type": "topic", "durable": true });
        resource("Exchange", resource_name(name), spec)
    });
    let queues = topology.all_queues().map(|name| {
        let mut arguments = topology.arguments(name);
        // The operator makes the argument from the type.
        let kind = arguments.as_object_mut().and_then(|all| all.remove("x-queue-type"));
        let spec = json!({ "name": name, "type": kind, "durable": true, "arguments": arguments });
        resource("Queue", resource_name(name), spec)
    });
    let bindings = bindings(topology).map(|(queue, key)| {
        let spec = json!({
            "source": topology.request_exchange,
            "destination": queue,
            "destinationType": "queue",
            "routingKey": key,
        });
        resource("Binding", resource_name(&format!("{queue}-by-{key}")), spec)
    });
    exchanges.into_iter().chain(queues).chain(bindings).collect()
}

/// The exchanges, each once: requests and events may share one.
fn exchanges(topology: &Topology) -> impl Iterator<Item = &str> {
    let names = [&topology.request_exchange, &topology.event_exchange];
    let count = if names[0] == names[1] { 1 } else { 2 };
    names.into_iter().take(count).map(String::as_str)
}

/// The queues that are bound to the request exchange, and their routing keys.
fn bindings(topology: &Topology) -> [(&str, &str); 2] {
    [(topology.request_queue(), REQUESTED), (topology.ended_queue(), ENDED)]
}

/// A name for a resource: Kubernetes takes at most 253 lower-case letters, digits, `-` and `.`, with a letter or
/// digit at either end.
fn resource_name(name: &str) -> String {
    let allowed = |char: char| {
        let char = char.to_ascii_lowercase();
        if char.is_ascii_alphanumeric() || char == '.' { char } else { '-' }
    };
    let name: String = name.chars().map(allowed).collect();
    // Of a long name the end is what distinguishes the queues of a family.
    let end = name.len().saturating_sub(253);
    name[end..].trim_matches(['-', '.']).to_owned()
}
