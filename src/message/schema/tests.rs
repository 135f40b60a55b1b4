use std::time::{Duration, SystemTime};

use jsonschema::Validator;
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::message::{Event, FailedReason, ReasonCode, decode_ending, decode_request};

fn validator(schema: &Value) -> Validator {
    jsonschema::draft7::options().should_validate_formats(true).build(schema).unwrap()
}

/// Returns whether a schema accepts a body, and whether the decoder does.
fn accepted(body: &Value) -> (bool, bool) {
    let by_schema =
        [request(), request_in_cloud_event()].iter().any(|s| validator(s).is_valid(body));
    let decoded = decode_request(body.to_string().as_bytes(), usize::MAX, Some("w"));
    (by_schema, decoded.request.is_ok())
}

#[test]
fn decoder_and_schema_agree_on_the_rules_of_each_field() {
    let long = |n: usize| "x".repeat(n);
    let data = |field: &str, value: Value| {
        let mut data = json!({ "userId": "ann" });
        data[field] = value;
        data
    };
    let good = [
        data("userId", json!("é 佐藤")),
        data("userId", json!(long(256))),
        data("workflowId", json!(long(128))),
        data("workflowId", json!("a\nb")),
        data("metadata", json!({ "a": [1.5, null], "externalUserId": 7 })),
        data("locale", json!("")),
        data("renew", json!(true)),
        data("expiresAt", json!("2030-01-31T12:00:00Z")),
        data("expiresAt", json!("2030-01-31T12:00:00.123456+05:30")),
        data("other", json!([])),
        json!({ "userId": "u", "workflowId": null, "metadata": null, "locale": null, "renew": null,
            "expiresAt": null, "specversion": null }),
    ];
    let bad = [
        json!({}),
        json!([]),
        json!(null),
        data("userId", json!(null)),
        data("userId", json!("")),
        data("userId", json!(7)),
        data("userId", json!(long(257))),
        data("userId", json!("a\u{0}")),
        data("userId", json!("a\n")),
        data("userId", json!("\u{7f}")),
        data("userId", json!("\u{85}")),
        data("workflowId", json!("")),
        data("workflowId", json!(long(129))),
        data("workflowId", json!(["w"])),
        data("metadata", json!([])),
        data("metadata", json!("{}")),
        data("locale", json!(1)),
        data("renew", json!("true")),
        data("renew", json!(0)),
        data("expiresAt", json!("2030-01-31")),
        data("expiresAt", json!("2030-01-31T12:00:00")),
        data("expiresAt", json!("2030-02-31T12:00:00Z")),
        data("expiresAt", json!("soon")),
        data("expiresAt", json!(1_900_000_000)),
        data("specversion", json!("1.0")),
    ];
    for (bodies, valid) in [(&good[..], true), (&bad[..], false)] {
        for body in bodies {
            assert_eq!(accepted(body), (valid, valid), "{body}");
        }
    }
}

#[test]
fn decoder_and_schema_agree_on_cloud_events() {
    let event = |field: &str, value: Value| {
        let mut event = json!({ "specversion": "1.0", "id": "e", "source": "/s", "type": REQUESTED,
            "data": { "userId": "ann" } });
        event[field] = value;
        event
    };
    assert_eq!(accepted(&event("time", json!(7))), (true, true));
    for (field, value) in [
        ("specversion", json!("0.3")),
        ("specversion", json!(1.0)),
        ("id", json!("")),
        ("id", json!(7)),
        ("source", json!("")),
        ("source", json!(null)),
        ("type", json!("handoff.ready")),
        ("data", json!(null)),
        ("data", json!([])),
        ("data", json!({ "userId": "" })),
    ] {
        let body = event(field, value);
        assert_eq!(accepted(&body), (false, false), "{body}");
    }
}

#[test]
fn decoder_and_schema_agree_on_endings() {
    let event = |data: Value| json!({ "specversion": "1.0", "id": "e", "source": "/s", "type": ENDED, "data": data });
    let accepted = |body: &Value| {
        let mut schemas = [ending(), ending_in_cloud_event()].into_iter();
        let by_schema = schemas.any(|schema| validator(&schema).is_valid(body));
        let decoded = decode_ending(body.to_string().as_bytes(), usize::MAX, Some("w"));
        (by_schema, decoded.ending.is_ok())
    };
    let good = [
        json!({ "userId": "ann" }),
        json!({ "userId": "ann", "workflowId": "w", "sessionId": "s", "other": [] }),
        json!({ "sessionId": 12_345, "userId": null, "workflowId": null }),
        json!({ "sessionId": "s".repeat(1_024), "workflowId": "w" }),
    ];
    let bad = [
        json!({}),
        json!([]),
        json!({ "workflowId": "w" }),
        json!({ "userId": null, "sessionId": null }),
        json!({ "userId": "a\n", "sessionId": "s" }),
        json!({ "userId": "ann", "workflowId": "" }),
        json!({ "userId": "ann", "sessionId": true }),
        json!({ "sessionId": "" }),
        json!({ "sessionId": ["s"] }),
        json!({ "sessionId": "s".repeat(1_025) }),
    ];
    for (bodies, valid) in [(&good[..], true), (&bad[..], false)] {
        for body in bodies {
            assert_eq!(accepted(body), (valid, valid), "{body}");
            assert_eq!(accepted(&event(body.clone())), (valid, valid), "{body} in an event");
        }
    }
    for (field, value) in [("type", json!(REQUESTED)), ("id", json!(7)), ("data", json!(null))] {
        let mut event = event(json!({ "sessionId": "s" }));
        event[field] = value;
        assert_eq!(accepted(&event), (false, false), "{event}");
    }
}

fn some_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~\u{80}-\u{9f}]{0,30}".prop_map(Value::from),
        select(vec!["", "1.0", REQUESTED, "2030-01-31T12:00:00Z", "2030-01-31 12:00", "\u{85}"])
            .prop_map(Value::from),
        Just(json!({ "userId": "ann" })),
        Just(json!([1])),
    ]
}

fn some_body() -> impl Strategy<Value = Value> {
    let key = select(vec![
        "userId",
        "workflowId",
        "metadata",
        "locale",
        "renew",
        "expiresAt",
        "other",
        "specversion",
        "id",
        "source",
        "type",
        "data",
    ]);
    let fields = vec((key, some_value()), 0..4);
    let base = select(vec![
        json!({}),
        json!({ "userId": "ann" }),
        json!({ "specversion": "1.0", "id": "e", "source": "/s", "type": REQUESTED, "data": { "userId": "u" } }),
    ]);
    (base, fields).prop_map(|(mut body, fields)| {
        for (key, value) in fields {
            body[key] = value;
        }
        body
    })
}

proptest! {
    #[test]
    fn decoder_and_schema_agree_on_every_body(body in some_body()) {
        let (by_schema, decoded) = accepted(&body);
        prop_assert_eq!(by_schema, decoded, "{}", body);
    }

    #[test]
    fn decoder_and_schema_agree_on_every_date(text in "20[0-9]{2}-[0-3][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-][0-2][0-9]:[0-6][0-9])") {
        let body = json!({ "userId": "ann", "expiresAt": text });
        let (by_schema, decoded) = accepted(&body);
        prop_assert_eq!(by_schema, decoded, "{}", body);
    }
}

#[test]
fn decoder_applies_the_rules_that_a_schema_cannot_express() {
    for body in [
        json!({ "userId": "é".repeat(129) }),
        json!({ "userId": "u", "workflowId": "é".repeat(65) }),
        json!({ "userId": "u", "metadata": { "k": "x".repeat(16_384) } }),
    ] {
        assert_eq!(accepted(&body), (true, false));
    }
    // RFC 3339 allows a space instead of the `T`; the validator does not.
    let spaced = json!({ "userId": "u", "expiresAt": "2030-01-31 12:00:00Z" });
    assert_eq!(accepted(&spaced), (false, true));
}

#[test]
fn every_event_matches_its_schema_and_no_other() {
    let reason = |code| FailedReason { code, message: "why".to_owned() };
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_772_446_504_611);
    let ready = EventBody::Ready {
        request_id: "r",
        user_id: "ann",
        workflow_id: "w",
        session_id: "s",
        url: "https://idv.example.com/capture?url=x",
        mobile_url: "https://idv.example.com/mobile?x",
        expires_at: now,
        reused: false,
    };
    let reasons = [
        ReasonCode::InvalidRequest,
        ReasonCode::RequestExpired,
        ReasonCode::PlatformRejected,
        ReasonCode::RetriesExhausted,
    ]
    .map(reason);
    let failed =
        reasons.iter().flat_map(|reason| {
            [(None, None), (Some("ann"), Some("w"))].map(|(user_id, workflow_id)| {
                EventBody::Failed { request_id: "r", user_id, workflow_id, reason, attempts: 1 }
            })
        });
    let as_ready = validator(&super::ready());
    let as_failed = validator(&super::failed());
    for body in std::iter::once(ready).chain(failed) {
        let event = Event::new(&body, now);
        let is_ready = event.kind == READY;
        let event: Value = serde_json::from_slice(&event.body).unwrap();
        assert_eq!(as_ready.is_valid(&event), is_ready, "{event}");
        assert_eq!(as_failed.is_valid(&event), !is_ready, "{event}");
        // Every field but `subject` is required.
        for key in event.as_object().unwrap().keys() {
            let mut less = event.clone();
            less.as_object_mut().unwrap().remove(key);
            assert_eq!(
                as_ready.is_valid(&less) || as_failed.is_valid(&less),
                key == "subject",
                "{key}"
            );
        }
        for key in event["data"].as_object().unwrap().keys() {
            let mut less = event.clone();
            less["data"].as_object_mut().unwrap().remove(key);
            assert!(!as_ready.is_valid(&less) && !as_failed.is_valid(&less), "{key}");
        }
    }
}
