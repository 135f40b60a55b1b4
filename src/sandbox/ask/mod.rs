//! What a call asks for, read from its headers, query and body.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode, header, request::Parts};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{escapes, record::CallRecord};

/// Longest body that is read, in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// Longest life of a token, in seconds.
const MAX_TTL: u64 = 86_400;

/// Cause a call is refused: a status, and a sentence for people that repeats nothing of the call.
pub(super) type Refusal = (StatusCode, &'static str);

/// What a session call asks for.
#[derive(Debug)]
pub(super) struct SessionAsk {
    pub(super) user: Arc<str>,
    pub(super) workflow: Arc<str>,
    pub(super) locale: Option<Box<str>>,
}

/// Reads a token call: how long the token is to live. The record learns what was sent even where
/// that is refused.
pub(super) fn token(
    parts: &Parts,
    body: Option<&[u8]>,
    record: &mut CallRecord,
) -> Result<Duration, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        ttl: u64,
    }
    const WRONG: Refusal = (StatusCode::BAD_REQUEST, "ttl must be whole seconds from 1 to 86400");
    let Body { ttl } = serde_json::from_slice(object(&parts.headers, body)?)
        .map_err(|error| if error.is_data() { WRONG } else { NOT_JSON })?;
    record.ttl = Some(ttl);
    match ttl {
        1..=MAX_TTL => Ok(Duration::from_secs(ttl)),
        _ => Err(WRONG),
    }
}

/// Reads a session call. The record learns what was sent even where that is refused.
pub(super) fn session(
    parts: &Parts,
    body: Option<&[u8]>,
    record: &mut CallRecord,
) -> Result<SessionAsk, Refusal> {
    const NO_WORKFLOW: Refusal =
        (StatusCode::BAD_REQUEST, "the query must hold one workflowId, percent-encoded");
    let query = parts.uri.query().unwrap_or_default();
    let workflow = escapes::parameter(query, "workflowId").map_err(|_| NO_WORKFLOW);
    record.workflow_id = workflow.as_deref().map(str::to_owned).ok();
    let user = user(&parts.headers, body, record);
    Ok(SessionAsk {
        workflow: workflow?.into(),
        user: user?.into(),
        locale: record.locale.as_deref().map(Into::into),
    })
}

fn user(
    headers: &HeaderMap,
    body: Option<&[u8]>,
    record: &mut CallRecord,
) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
        locale: Option<String>,
    }
    #[derive(Deserialize)]
    struct Person {
        #[serde(rename = "externalUserId")]
        external_user_id: String,
    }
    const WRONG: Refusal = (
        StatusCode::UNPROCESSABLE_ENTITY,
        "metadata must be an object with one externalUserId, a string; locale a string, if anything",
    );
    let body: Body<'_> = serde_json::from_slice(object(headers, body)?)
        .map_err(|error| if error.is_data() { WRONG } else { NOT_JSON })?;
    let metadata = body.metadata.get();
    record.locale = body.locale;
    record.metadata = serde_json::from_str(metadata).ok();
    if !metadata.starts_with('{') {
        return Err(WRONG);
    }
    // Read apart from the rest, so that an id given twice is found: which of them counts is unclear.
    let person: Person = serde_json::from_str(metadata).map_err(|_| WRONG)?;
    record.external_user_id = Some(person.external_user_id.clone());
    match person.external_user_id.is_empty() {
        true => Err(WRONG),
        false => Ok(person.external_user_id),
    }
}

const NOT_JSON: Refusal = (StatusCode::BAD_REQUEST, "the body must be a JSON object");

/// The body, if it may be read as a JSON object. Without this look serde would take arrays, too.
fn object<'a>(headers: &HeaderMap, body: Option<&'a [u8]>) -> Result<&'a [u8], Refusal> {
    let body = body.ok_or((StatusCode::PAYLOAD_TOO_LARGE, "the body must not exceed 64 KiB"))?;
    if !is_json(headers) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json"));
    }
    match body.trim_ascii_start().first() {
        Some(b'{') => Ok(body),
        _ => Err(NOT_JSON),
    }
}

/// Whether the content type is JSON, whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = |text: &str| {
        text.split(';').next().is_some_and(|e| e.trim().eq_ignore_ascii_case("application/json"))
    };
    let value = headers.get(header::CONTENT_TYPE);
    value.and_then(|value| value.to_str().ok()).is_some_and(essence)
}

#[cfg(test)]
mod tests;
