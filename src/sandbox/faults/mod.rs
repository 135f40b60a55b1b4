//! Faults: how API calls misbehave on demand.
//!
//! As JSON: `{"token": {"status": 429, "retryAfter": 2}, "session": {"close": true}}`.

use std::time::Duration;

use axum::http::HeaderValue;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::call::Endpoint;

/// The faults in effect, by endpoint; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Faults {
    token: Option<Fault>,
    session: Option<Fault>,
    deeplink: Option<Fault>,
}

/// How calls of an endpoint misbehave, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", expecting = "an object")]
pub(super) struct Fault {
    /// From 200 to 599.
    status: Option<u16>,
    /// The `Retry-After` header, verbatim: seconds or a date.
    #[serde(default, deserialize_with = "retry_after")]
    retry_after: Option<String>,
    /// Labelled as JSON, whatever it is.
    body: Option<String>,
    /// The location of a 302.
    redirect: Option<String>,
    /// Whether the connection is closed without an answer.
    close: Option<bool>,
    /// The latency, in place of the configured latency and jitter.
    latency_ms: Option<u64>,
    /// Whether the token or session is made before the fault answers, so that the caller never
    /// learns of it.
    carry_out: Option<bool>,
    /// The number of calls that the fault applies to; `None` for all until it is replaced.
    times: Option<u64>,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A response labelled as JSON; without a body, with a JSON object that has a message.
    Response { status: u16, retry_after: Option<String>, body: Option<String> },
    /// A 302 to this location.
    Redirect(String),
    /// The connection is closed without an answer.
    Close,
}

impl Faults {
    /// The same fault for both calls of the two-call flow. [`Fault::times`] counts for each separately.
    pub(super) fn both(fault: Fault) -> Self {
        Self { token: Some(fault.clone()), session: Some(fault), deeplink: None }
    }

    /// Returns the fault of the next call, and counts the call as one of its [`Fault::times`].
    pub(super) fn take(&mut self, endpoint: Endpoint) -> Option<Fault> {
        let slot = match endpoint {
            Endpoint::Token => &mut self.token,
            Endpoint::Session => &mut self.session,
            Endpoint::Deeplink => &mut self.deeplink,
        };
        let fault = slot.as_mut()?;
        match &mut fault.times {
            None => Some(fault.clone()),
            Some(times) if *times > 1 => {
                *times -= 1;
                Some(fault.clone())
            }
            Some(0) => {
                *slot = None;
                None
            }
            Some(_) => slot.take(),
        }
    }

    /// Parses faults. An endpoint that is missing or `null` has no fault.
    ///
    /// # Errors
    /// A message that names the wrong field and, if it is unknown, the known ones.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, expecting = "an object")]
        struct FaultsJson {
            token: Option<Fault>,
            session: Option<Fault>,
            deeplink: Option<Fault>,
            both: Option<Fault>,
        }
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
        let validated = |name: &str, fault: Option<Fault>| {
            fault.map(Fault::validated).transpose().map_err(|error| format!("{name}.{error}"))
        };
        let token = validated("token", faults.token)?;
        let session = validated("session", faults.session)?;
        let deeplink = validated("deeplink", faults.deeplink)?;
        match validated("both", faults.both)? {
            None => Ok(Self { token, session, deeplink }),
            Some(fault) if token.is_none() && session.is_none() => {
                Ok(Self { deeplink, ..Self::both(fault) })
            }
            Some(_) => Err("both: must not be combined with token or session".to_owned()),
        }
    }

    /// Formats faults so that [`Faults::from_json`] reads them.
    pub(super) fn to_json(&self) -> Value {
        let mut faults = serde_json::to_value(self).unwrap_or_default();
        remove_nulls(&mut faults);
        faults
    }
}

impl Fault {
    /// Checks what the types do not, and normalizes the fault.
    ///
    /// # Errors
    /// The name of a field, and what is wrong with it.
    fn validated(mut self) -> Result<Self, &'static str> {
        self.close = self.close.filter(|close| *close);
        self.carry_out = self.carry_out.filter(|carry_out| *carry_out);
        let responds = self.status.is_some() || self.body.is_some();
        if self.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("status: must be from 200 to 599");
        }
        if self.retry_after.as_deref().is_some_and(|text| !is_header_value(text)) {
            return Err("retryAfter: must be whole seconds or a date");
        }
        if self.retry_after.is_some() && !responds {
            return Err("retryAfter: must be combined with status or body");
        }
        if self.redirect.is_some() && (responds || self.close.is_some()) {
            return Err("redirect: must not be combined with status, body or close");
        }
        if self.redirect.as_deref().is_some_and(|to| !is_header_value(to)) {
            return Err("redirect: must be a URL of visible ASCII characters");
        }
        if self.close.is_some() && responds {
            return Err("close: must not be combined with status or body");
        }
        if responds {
            self.status.get_or_insert(200);
        }
        if self.answer().is_none() && self.latency_ms.is_none() {
            return Err("status: one of status, body, redirect, close and latencyMs is required");
        }
        Ok(self)
    }

    /// The answer; `None` for the normal one.
    pub(super) fn answer(&self) -> Option<Answer> {
        if self.close.is_some() {
            return Some(Answer::Close);
        }
        if let Some(to) = &self.redirect {
            return Some(Answer::Redirect(to.clone()));
        }
        let retry_after = self.retry_after.clone();
        let body = self.body.clone();
        self.status.map(|status| Answer::Response { status, retry_after, body })
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency_ms.map(Duration::from_millis)
    }

    pub(super) fn is_carried_out(&self) -> bool {
        self.carry_out.is_some()
    }
}

fn retry_after<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be whole seconds or a date")]
    enum RetryAfter {
        Seconds(u64),
        Text(String),
    }
    let retry_after = Option::<RetryAfter>::deserialize(deserializer)?;
    Ok(retry_after.map(|retry_after| match retry_after {
        RetryAfter::Seconds(seconds) => seconds.to_string(),
        RetryAfter::Text(text) => text,
    }))
}

fn is_header_value(text: &str) -> bool {
    text.is_ascii() && HeaderValue::from_str(text).is_ok()
}

/// Removes the fields that are `null`, at any depth.
fn remove_nulls(json: &mut Value) {
    if let Value::Object(fields) = json {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(remove_nulls);
    }
}

#[cfg(test)]
mod tests;
