use super::*;
use crate::units::millis;

impl Faults {
    /// A fault of the token endpoint only.
    pub(in crate::sandbox) fn token(fault: Fault) -> Self {
        Self { token: Some(fault), ..Self::default() }
    }

    /// A fault of the session endpoint only.
    pub(in crate::sandbox) fn session(fault: Fault) -> Self {
        Self { session: Some(fault), ..Self::default() }
    }
}

impl Fault {
    /// Answers this status.
    pub(in crate::sandbox) fn status(status: u16) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// Answers this status with a `Retry-After` header, in seconds or as a date.
    pub(in crate::sandbox) fn retry_after(status: u16, retry_after: impl ToString) -> Self {
        Self { retry_after: Some(retry_after.to_string()), ..Self::status(status) }
    }

    /// Answers 200 with this body, labelled as JSON whatever it is.
    pub(in crate::sandbox) fn body(body: &str) -> Self {
        Self { body: Some(body.to_owned()), ..Self::status(200) }
    }

    /// Answers a 302 to this location.
    pub(in crate::sandbox) fn redirect(location: &str) -> Self {
        Self { redirect: Some(location.to_owned()), ..Self::default() }
    }

    /// Closes the connection without an answer.
    pub(in crate::sandbox) fn close() -> Self {
        Self { close: Some(true), ..Self::default() }
    }

    /// Answers normally, after this latency.
    pub(in crate::sandbox) fn slow(latency: Duration) -> Self {
        Self::default().after(latency)
    }

    /// Sets the latency.
    #[must_use]
    pub(in crate::sandbox) fn after(self, latency: Duration) -> Self {
        Self { latency_ms: Some(millis(latency)), ..self }
    }

    /// Limits the fault to this number of calls.
    #[must_use]
    pub(in crate::sandbox) fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Makes the token or session before the fault answers.
    #[must_use]
    pub(in crate::sandbox) fn carried_out(self) -> Self {
        Self { carry_out: Some(true), ..self }
    }
}

fn read(json: &str) -> Result<Faults, String> {
    Faults::from_json(json.as_bytes())
}

#[test]
fn faults_survive_a_json_round_trip() {
    let slow = Fault::slow(Duration::from_millis(250));
    for faults in [
        Faults::default(),
        Faults::both(Fault::status(503)),
        Faults::token(Fault::retry_after(429, 2).times(3)),
        Faults::session(Fault::body("<html>").carried_out()),
        Faults {
            token: Some(Fault::redirect("https://x.example/")),
            session: Some(slow),
            deeplink: None,
        },
        Faults::session(Fault::close().after(Duration::from_secs(1))),
    ] {
        assert_eq!(read(&faults.to_json().to_string()), Ok(faults));
    }
}

#[test]
fn both_sets_both_endpoints_and_null_none() {
    assert_eq!(read(r#"{"both":{"close":true}}"#), Ok(Faults::both(Fault::close())));
    assert_eq!(read(r#"{"token":null}"#), Ok(Faults::default()));
    let dated = read(r#"{"token":{"status":503,"retryAfter":"Wed, 21 Oct 2065 07:28:00 GMT"}}"#);
    assert_eq!(dated, Ok(Faults::token(Fault::retry_after(503, "Wed, 21 Oct 2065 07:28:00 GMT"))));
}

#[test]
fn errors_name_the_field() {
    for (json, message) in [
        ("[]", "invalid length 0, expected an object"),
        ("7", "invalid type: integer `7`, expected an object"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        (r#"{"tokens":{}}"#, "tokens: unknown field `tokens`, expected one of `token`, `session`"),
        (r#"{"token":7}"#, "token: invalid type: integer `7`, expected an object"),
        (r#"{"token":{}}"#, "token.status: "),
        (
            r#"{"token":{"status":503,"statuss":1}}"#,
            "token.statuss: unknown field `statuss`, expected one of `status`, `retryAfter`",
        ),
        (r#"{"token":{"status":"503"}}"#, "token.status: invalid type"),
        (r#"{"token":{"status":99}}"#, "token.status: must be"),
        (r#"{"token":{"status":100000}}"#, "token.status: invalid value"),
        (r#"{"session":{"close":true,"status":503}}"#, "session.close: "),
        (r#"{"session":{"close":true,"redirect":"/"}}"#, "session.redirect: "),
        (r#"{"session":{"redirect":"a\nb"}}"#, "session.redirect: "),
        (r#"{"session":{"retryAfter":1,"close":true}}"#, "session.retryAfter: "),
        (r#"{"session":{"status":429,"retryAfter":-1}}"#, "session.retryAfter: must be whole"),
        (r#"{"session":{"status":429,"retryAfter":"a\nb"}}"#, "session.retryAfter: must be whole"),
        (r#"{"session":{"status":429,"times":-1}}"#, "session.times: "),
        (r#"{"both":{"close":true},"token":{"close":true}}"#, "both: "),
    ] {
        let error = read(json).unwrap_err();
        assert!(error.starts_with(message), "{json}: {error}");
    }
}

#[test]
fn a_fault_without_a_limit_stays() {
    let mut faults = Faults::token(Fault::status(503));
    for _ in 0..3 {
        assert_eq!(faults.take(Endpoint::Token), Some(Fault::status(503)));
        assert_eq!(faults.take(Endpoint::Session), None);
    }
}

#[test]
fn a_fault_with_a_limit_ends() {
    let mut faults = Faults::both(Fault::close().times(2));
    assert!(faults.take(Endpoint::Token).is_some());
    assert_eq!(faults.token, Some(Fault::close().times(1)));
    assert!(faults.take(Endpoint::Token).is_some());
    assert_eq!(faults.take(Endpoint::Token), None);
    assert!(faults.take(Endpoint::Session).is_some());

    let mut never = Faults::token(Fault::close().times(0));
    assert_eq!(never.take(Endpoint::Token), None);
}
