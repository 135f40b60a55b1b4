//! Faults as JSON: `{"token": {"status": 429, "retryAfter": 2}, "session": {"close": true}}`.

use std::time::Duration;

use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::faults::{Answer, Fault, Faults};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct FaultsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<FaultJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<FaultJson>,
    /// Stands for both endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    both: Option<FaultJson>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "an object")]
struct FaultJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<RetryAfter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    carry_out: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "must be whole seconds or a date")]
enum RetryAfter {
    Seconds(u64),
    Text(String),
}

impl Faults {
    /// Parses faults. An endpoint that is missing or `null` has no fault.
    ///
    /// # Errors
    /// A message that names the wrong field and, if it is unknown, the known ones.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_slice(json);
        let faults: FaultsJson = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            match error.inner() {
                error if !error.is_data() => format!("not JSON: {error}"),
                error if path == "." => error.to_string(),
                error => format!("{path}: {error}"),
            }
        })?;
        json.end().map_err(|error| format!("not JSON: {error}"))?;
        let fault = |name: &str, fault: Option<FaultJson>| {
            fault.map(Fault::try_from).transpose().map_err(|error| format!("{name}.{error}"))
        };
        let token = fault("token", faults.token)?;
        let session = fault("session", faults.session)?;
        match fault("both", faults.both)? {
            None => Ok(Self { token, session }),
            Some(fault) if token.is_none() && session.is_none() => Ok(Self::both(fault)),
            Some(_) => Err("both: must not be combined with token or session".to_owned()),
        }
    }

    /// Formats faults so that [`Faults::from_json`] reads them.
    pub(super) fn to_json(&self) -> Value {
        let faults = FaultsJson {
            token: self.token.as_ref().map(FaultJson::from),
            session: self.session.as_ref().map(FaultJson::from),
            both: None,
        };
        serde_json::to_value(faults).unwrap_or_default()
    }
}

impl TryFrom<FaultJson> for Fault {
    /// The name of a field, and what is wrong with it.
    type Error = &'static str;

    fn try_from(json: FaultJson) -> Result<Self, Self::Error> {
        let FaultJson { status, body, redirect, latency_ms, times, .. } = json;
        if status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("status: must be from 200 to 599");
        }
        let retry_after = match json.retry_after {
            None => None,
            Some(RetryAfter::Seconds(seconds)) => Some(seconds.to_string()),
            Some(RetryAfter::Text(text)) if is_header_value(&text) => Some(text),
            Some(RetryAfter::Text(_)) => return Err("retryAfter: must be whole seconds or a date"),
        };
        let close = json.close.unwrap_or_default();
        let responds = status.is_some() || body.is_some();
        if retry_after.is_some() && !responds {
            return Err("retryAfter: must be combined with status or body");
        }
        let answer = match redirect {
            Some(_) if responds || close => {
                return Err("redirect: must not be combined with status, body or close");
            }
            Some(to) if !is_header_value(&to) => {
                return Err("redirect: must be a URL of visible ASCII characters");
            }
            Some(to) => Some(Answer::Redirect(to)),
            None if close && responds => {
                return Err("close: must not be combined with status or body");
            }
            None if close => Some(Answer::Close),
            None if responds => {
                Some(Answer::Response { status: status.unwrap_or(200), retry_after, body })
            }
            None => None,
        };
        if answer.is_none() && latency_ms.is_none() {
            return Err("status: one of status, body, redirect, close and latencyMs is required");
        }
        Ok(Self {
            answer,
            latency: latency_ms.map(Duration::from_millis),
            carry_out: json.carry_out.unwrap_or_default(),
            times,
        })
    }
}

impl From<&Fault> for FaultJson {
    fn from(fault: &Fault) -> Self {
        let mut json = Self {
            status: None,
            retry_after: None,
            body: None,
            redirect: None,
            close: None,
            latency_ms: fault
                .latency
                .map(|latency| u64::try_from(latency.as_millis()).unwrap_or(u64::MAX)),
            carry_out: fault.carry_out.then_some(true),
            times: fault.times,
        };
        match &fault.answer {
            None => {}
            Some(Answer::Close) => json.close = Some(true),
            Some(Answer::Redirect(to)) => json.redirect = Some(to.clone()),
            Some(Answer::Response { status, retry_after, body }) => {
                json.status = Some(*status);
                json.retry_after = retry_after.clone().map(RetryAfter::Text);
                json.body.clone_from(body);
            }
        }
        json
    }
}

fn is_header_value(text: &str) -> bool {
    text.is_ascii() && HeaderValue::from_str(text).is_ok()
}

#[cfg(test)]
mod tests;
