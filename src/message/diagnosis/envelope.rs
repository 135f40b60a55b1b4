//! Objects that are not requests: other stacks' envelopes, and other spellings.

use crate::message::decode;

/// Keys that appear in an envelope together, and its name with the remedy.
const ENVELOPES: [(&[&str], &str); 10] = [
    (
        &["messageType", "message"],
        "it is a MassTransit envelope: publish raw JSON (UseRawJsonSerializer)",
    ),
    (
        &["pattern", "data"],
        "it is a NestJS envelope: publish the request itself, or set a serializer of your own",
    ),
    (
        &["task", "args", "kwargs"],
        "it is a Celery task: publish the request itself, with kombu or pika",
    ),
    (&["actor_name", "args"], "it is a Dramatiq task: publish the request itself, with pika"),
    (&["class", "args", "jid"], "it is a Sidekiq job: publish the request itself"),
    (&["job_class", "arguments"], "it is an Active Job: publish the request itself"),
    (&["displayName", "job"], "it is a Laravel job: publish the request itself"),
    (
        &["detail", "detail-type"],
        "it is an EventBridge event: publish the request itself, or a CloudEvent",
    ),
    (
        &["0", "1"],
        "it is an array of bytes as JSON.stringify writes it: publish the bytes themselves",
    ),
    (
        &["schema", "payload"],
        "it is a Kafka Connect or Debezium envelope: publish the request itself",
    ),
];

/// Keys that commonly wrap a request, with the remedy.
const WRAPPERS: [(&str, &str); 8] = [
    (
        "data",
        "there is one in `data`: publish that object itself, or add `specversion`, `id`, `source` and \
         `type` for a CloudEvent",
    ),
    ("payload", "there is one in `payload`: publish that object itself"),
    ("message", "there is one in `message`: publish that object itself"),
    ("Message", "there is one in `Message`: publish that object itself"),
    ("body", "there is one in `body`: publish that object itself"),
    ("request", "there is one in `request`: publish that object itself"),
    ("event", "there is one in `event`: publish that object itself"),
    ("value", "there is one in `value`: publish that object itself"),
];

const INSIDE: &str = "there is one in another object: publish that object itself";

/// Returns what an object without `userId` is, with the remedy.
pub(super) fn name(json: &str) -> Option<String> {
    let mut keys = Vec::new();
    let mut similar = None;
    let mut wrapper = None;
    let mut is_buffer = false;
    decode::for_each_entry(json, |key, value| {
        let key = key.get().trim_matches('"');
        keys.push(key);
        let value = value.get();
        if key != "userId" && is_spelled_like_user_id(key) {
            similar = Some(key);
        }
        is_buffer |= key == "type" && value == "\"Buffer\"";
        wrapper = wrapper.or_else(|| wrapping(key, value));
    })?;
    let contains = |wanted: &[&str]| wanted.iter().all(|key| keys.contains(key));
    if is_buffer && keys.contains(&"data") {
        return Some(
            "it is a Buffer as JSON.stringify writes it: publish the Buffer itself".into(),
        );
    }
    if let Some((_, name)) = ENVELOPES.iter().find(|(keys, _)| contains(keys)) {
        return Some((*name).to_owned());
    }
    // The key has the letters of `userId`, so it is short and contains no data.
    similar.map(|key| format!("there is `{key}`: spell it `userId`")).or(wrapper.map(str::to_owned))
}

/// Returns where a value holds a request, with the remedy.
fn wrapping(key: &str, value: &str) -> Option<&'static str> {
    if let Some(text) = object_in_string(value) {
        return has_user(&text).then_some(
            "there is one in a string: publish that object itself, and encode it only once",
        );
    }
    if has_user(value) {
        let known = WRAPPERS.iter().find(|(name, _)| *name == key);
        return known.map(|(_, remedy)| *remedy).or(Some(INSIDE));
    }
    let mut is_inside = false;
    decode::for_each_entry(value, |_, value| is_inside |= has_user(value.get()));
    is_inside.then_some(INSIDE)
}

/// The JSON object that a JSON string contains.
fn object_in_string(value: &str) -> Option<String> {
    let may_contain_one = value.starts_with('"') && value.contains('{');
    let text: String = may_contain_one.then(|| serde_json::from_str(value).ok())??;
    Some(text.trim().to_owned()).filter(|text| text.starts_with('{'))
}

fn has_user(json: &str) -> bool {
    if !json.starts_with('{') {
        return false;
    }
    let mut found = false;
    decode::for_each_entry(json, |key, _| {
        found |= is_spelled_like_user_id(key.get().trim_matches('"'));
    });
    found
}

/// Whether a key is `userId` but for case and separators, such as .NET's `UserId` or `user_id`.
fn is_spelled_like_user_id(key: &str) -> bool {
    let letters = key.bytes().filter(|byte| !matches!(byte, b'_' | b'-'));
    key.len() <= 8 && letters.map(|byte| byte.to_ascii_lowercase()).eq(*b"userid")
}
