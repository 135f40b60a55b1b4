use super::*;

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
        Faults { token: Some(Fault::redirect("https://x.example/")), session: Some(slow) },
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
