//! Parses API calls: headers, query and body.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{call::ApiCall, query, record::CallRecord};

/// Longest lifetime of a token, in seconds.
const MAX_TTL: u64 = 86_400;

/// An error answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Explains the error, and repeats nothing of the call.
    pub(super) message: &'static str,
}

impl Refusal {
    pub(super) const fn new(status: StatusCode, message: &'static str) -> Self {
        Self { status, message }
    }
}

const NOT_JSON: Refusal = Refusal::new(StatusCode::BAD_REQUEST, "the body must be a JSON object");

#[derive(Debug)]
pub(super) struct SessionRequest {
    pub(super) user: Arc<str>,
    pub(super) workflow: Arc<str>,
    pub(super) locale: Option<Box<str>>,
}

/// Parses a token call and returns the token's lifetime. Invalid values are recorded, too.
pub(super) fn token(call: &ApiCall, record: &mut CallRecord) -> Result<Duration, Refusal> {
    #[derive(Deserialize)]
    struct TokenCallBody {
        ttl: u64,
    }
    const WRONG_TTL: Refusal =
        Refusal::new(StatusCode::BAD_REQUEST, "ttl must be a whole number of seconds, 1 to 86400");
    let TokenCallBody { ttl } = serde_json::from_slice(json_object(call)?)
        .map_err(|error| if error.is_data() { WRONG_TTL } else { NOT_JSON })?;
    record.ttl = Some(ttl);
    match ttl {
        1..=MAX_TTL => Ok(Duration::from_secs(ttl)),
        _ => Err(WRONG_TTL),
    }
}

/// Parses a deeplink call: a session call that also gives the lifetime.
pub(super) fn deeplink(
    call: &ApiCall,
    record: &mut CallRecord,
) -> Result<(SessionRequest, Duration), Refusal> {
    let session = session(call, record);
    let ttl = token(call, record);
    Ok((session?, ttl?))
}

/// Parses a session call. Invalid values are recorded, too.
pub(super) fn session(call: &ApiCall, record: &mut CallRecord) -> Result<SessionRequest, Refusal> {
    const NO_WORKFLOW: Refusal = Refusal::new(
        StatusCode::BAD_REQUEST,
        "the query must have exactly one workflowId, percent-encoded",
    );
    let query = call.query().unwrap_or_default();
    let workflow = query::parameter(query, "workflowId").map_err(|_| NO_WORKFLOW);
    record.workflow_id = workflow.as_deref().map(str::to_owned).ok();
    let user = user(call, record);
    Ok(SessionRequest {
        workflow: workflow?.into(),
        user: user?.into(),
        locale: record.locale.as_deref().map(Into::into),
    })
}

fn user(call: &ApiCall, record: &mut CallRecord) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct SessionCallBody<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
        locale: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct SessionMetadata {
        external_user_id: String,
    }
    const WRONG_METADATA: Refusal = Refusal::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "metadata must be an object with exactly one externalUserId, a non-empty string; \
         locale must be a string if present",
    );
    let body: SessionCallBody<'_> = serde_json::from_slice(json_object(call)?)
        .map_err(|error| if error.is_data() { WRONG_METADATA } else { NOT_JSON })?;
    let metadata = body.metadata.get();
    record.locale = body.locale;
    record.metadata = Some(body.metadata.to_owned());
    if !metadata.starts_with('{') {
        return Err(WRONG_METADATA);
    }
    // Parsed separately, as serde rejects a duplicate field of a struct, but not of a `Value`.
    let metadata: SessionMetadata = serde_json::from_str(metadata).map_err(|_| WRONG_METADATA)?;
    record.external_user_id = Some(metadata.external_user_id.clone());
    if metadata.external_user_id.is_empty() {
        return Err(WRONG_METADATA);
    }
    Ok(metadata.external_user_id)
}

/// Returns the body if it may be a JSON object. serde would also read a struct from an array.
fn json_object(call: &ApiCall) -> Result<&[u8], Refusal> {
    let body = call
        .body
        .as_deref()
        .ok_or(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body must not exceed 64 KiB"))?;
    if !is_json(call.headers()) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type must be application/json",
        ));
    }
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(NOT_JSON);
    }
    Ok(body)
}

/// Whether the content type is JSON, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = |text: &str| {
        text.split(';').next().is_some_and(|e| e.trim().eq_ignore_ascii_case("application/json"))
    };
    let value = headers.get(header::CONTENT_TYPE);
    value.and_then(|value| value.to_str().ok()).is_some_and(essence)
}

#[cfg(test)]
mod tests;
