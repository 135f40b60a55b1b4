use super::*;
use crate::message::{decode_ending, decode_request};

fn default_document() -> Value {
    document(&Topology::new(&BrokerSettings::defaults().unwrap()))
}

#[test]
fn every_example_is_valid() {
    let document = default_document();
    let messages = document["components"]["messages"].as_object().unwrap();
    assert_eq!(messages.len(), 6);
    for (name, message) in messages {
        let schema = |part: &str| {
            let path = message[part]["$ref"].as_str().unwrap().trim_start_matches('#');
            let schema = document.pointer(path).unwrap();
            jsonschema::draft7::options().should_validate_formats(true).build(schema).unwrap()
        };
        let examples = message["examples"].as_array().unwrap();
        assert!(!examples.is_empty());
        for example in examples {
            let payload = &example["payload"];
            assert!(schema("payload").is_valid(payload), "{name}: {payload}");
            if let Some(headers) = example.get("headers") {
                assert!(schema("headers").is_valid(headers), "{name}: {headers}");
            }
            if name.starts_with("ending") {
                let body = payload.to_string();
                assert!(decode_ending(body.as_bytes(), 65_536, None).ending.is_ok());
            }
            if name.starts_with("request") {
                let body = payload.to_string();
                assert!(decode_request(body.as_bytes(), 65_536, Some("w")).request.is_ok());
            }
        }
    }
}

#[test]
fn every_reference_resolves() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = default_document();
    let mut found = vec![];
    references(&document, &mut found);
    assert!(found.len() > 10);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[test]
fn queue_arguments_are_those_of_the_topology() {
    let document = default_document();
    let channel = |name: &str| document["channels"][name].clone();
    assert_eq!(channel("dead")["x-queue-arguments"], json!({ "x-queue-type": "quorum" }));
    assert_eq!(channel("requestQueue")["x-queue-arguments"]["x-delivery-limit"], 20);
    assert_eq!(channel("endedQueue")["x-queue-arguments"]["x-delivery-limit"], 20);
    assert_eq!(channel("endedQueue")["address"], "verification.requested.ended");
    assert_eq!(channel("retry1m")["x-queue-arguments"]["x-message-ttl"], 60_000);
    assert_eq!(channel("retry1m")["address"], "verification.requested.retry.1m");
}
