//! Faults as JSON: `{"token": {"status": 429, "retryAfter": 2}, "session": {"close": true}}`.
//!
//! Read by hand, so that a mistake is told by the name of its field.

use std::time::Duration;

use axum::http::HeaderValue;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::faults::{Answer, Fault, Faults};

impl Faults {
    /// Reads faults. `both` stands for both calls; what is absent or `null` is no fault.
    ///
    /// # Errors
    /// A sentence that names the field at fault.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let value = serde_json::from_slice(json).map_err(|error| format!("not JSON: {error}"))?;
        let mut fields = Fields::of(value, "")?;
        let token = fields.fault("token")?;
        let session = fields.fault("session")?;
        let both = fields.fault("both")?;
        fields.end("token, session, both")?;
        match both {
            None => Ok(Self { token, session }),
            Some(fault) if token.is_none() && session.is_none() => Ok(Self::both(fault)),
            Some(_) => Err("both: goes without token and session".to_owned()),
        }
    }

    /// What [`Faults::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        for (name, fault) in [("token", &self.token), ("session", &self.session)] {
            if let Some(fault) = fault {
                json.insert(name.to_owned(), fault.to_json());
            }
        }
        Value::Object(json)
    }
}

impl Fault {
    const FIELDS: &str = "status, retryAfter, body, redirect, close, latencyMs, carryOut, times";

    fn from_fields(mut fields: Fields) -> Result<Self, String> {
        let status: Option<u16> = fields.take("status")?;
        let retry_after: Option<Value> = fields.take("retryAfter")?;
        let body: Option<String> = fields.take("body")?;
        let redirect: Option<String> = fields.take("redirect")?;
        let close: bool = fields.take("close")?.unwrap_or_default();
        let latency: Option<u64> = fields.take("latencyMs")?;
        let carry_out: bool = fields.take("carryOut")?.unwrap_or_default();
        let times = fields.take("times")?;
        fields.end(Self::FIELDS)?;

        if status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err(fields.wrong("status", "must be from 200 to 599"));
        }
        let retry_after = match retry_after {
            None => None,
            Some(Value::Number(seconds)) if seconds.is_u64() => Some(seconds.to_string()),
            Some(Value::String(text)) if fits_header(&text) => Some(text),
            Some(_) => return Err(fields.wrong("retryAfter", "must be whole seconds or a date")),
        };
        let responds = status.is_some() || body.is_some();
        if retry_after.is_some() && !responds {
            return Err(fields.wrong("retryAfter", "goes with status"));
        }
        let answer = match redirect {
            Some(_) if responds || close => {
                return Err(fields.wrong("redirect", "goes without status, body and close"));
            }
            Some(to) if !fits_header(&to) => {
                return Err(fields.wrong("redirect", "must be an address of visible ASCII"));
            }
            Some(to) => Some(Answer::Redirect(to)),
            None if close && responds => {
                return Err(fields.wrong("close", "goes without status and body"));
            }
            None if close => Some(Answer::Close),
            None if responds => {
                Some(Answer::Response { status: status.unwrap_or(200), retry_after, body })
            }
            None => None,
        };
        if answer.is_none() && latency.is_none() {
            return Err(fields.wrong("status", "or body, redirect, close or latencyMs is needed"));
        }
        Ok(Self { answer, latency: latency.map(Duration::from_millis), carry_out, times })
    }

    fn to_json(&self) -> Value {
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        match &self.answer {
            None => {}
            Some(Answer::Close) => drop(put("close", true.into())),
            Some(Answer::Redirect(to)) => drop(put("redirect", to.clone().into())),
            Some(Answer::Response { status, retry_after, body }) => {
                put("status", (*status).into());
                retry_after.clone().map(|value| put("retryAfter", value.into()));
                body.clone().map(|body| put("body", body.into()));
            }
        }
        if let Some(latency) = self.latency {
            put("latencyMs", u64::try_from(latency.as_millis()).unwrap_or(u64::MAX).into());
        }
        if self.carry_out {
            put("carryOut", true.into());
        }
        self.times.map(|times| put("times", times.into()));
        Value::Object(json)
    }
}

fn fits_header(text: &str) -> bool {
    text.is_ascii() && HeaderValue::from_str(text).is_ok()
}

/// The fields of an object that have not been read yet.
struct Fields {
    left: Map<String, Value>,
    /// `token.` for the fields of the token's fault.
    path: String,
}

impl Fields {
    fn of(value: Value, path: &str) -> Result<Self, String> {
        match value {
            Value::Object(left) => Ok(Self { left, path: path.to_owned() }),
            _ if path.is_empty() => Err("must be an object".to_owned()),
            _ => Err(format!("{}: must be an object", path.trim_end_matches('.'))),
        }
    }

    fn wrong(&self, field: &str, why: impl std::fmt::Display) -> String {
        format!("{}{field}: {why}", self.path)
    }

    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, String> {
        match self.left.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|error| self.wrong(field, error))
            }
        }
    }

    fn fault(&mut self, field: &str) -> Result<Option<Fault>, String> {
        match self.take::<Value>(field)? {
            None => Ok(None),
            Some(value) => Fault::from_fields(Self::of(value, &format!("{field}."))?).map(Some),
        }
    }

    fn end(&self, known: &str) -> Result<(), String> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(field) => Err(self.wrong(field, format_args!("unknown; there are {known}"))),
        }
    }
}

#[cfg(test)]
mod tests;
