use axum::http::Request;

use super::*;
use crate::sandbox::record::Call;

fn parts(uri: &str, content_type: &str) -> Parts {
    let request = Request::builder().uri(uri).header("content-type", content_type);
    request.body(()).unwrap().into_parts().0
}

fn ttl(content_type: &str, body: Option<&str>) -> (Option<u64>, Result<Duration, u16>) {
    let mut record = CallRecord::new(Call::Token, 0);
    let asked = token(&parts("/", content_type), body.map(str::as_bytes), &mut record);
    (record.ttl, asked.map_err(|(status, _)| status.as_u16()))
}

#[test]
fn a_ttl_is_whole_seconds_of_a_day_at_most() {
    let ttl = |body| ttl("application/json", Some(body));
    assert_eq!(ttl(r#"{"ttl":1}"#), (Some(1), Ok(Duration::from_secs(1))));
    let day = Duration::from_secs(86_400);
    assert_eq!(ttl(r#" {"ttl": 86400, "other": []}"#), (Some(86_400), Ok(day)));
    for wrong in [
        "",
        "[3600]",
        "3600",
        "{",
        "{}",
        r#"{"ttl":1.5}"#,
        r#"{"ttl":"60"}"#,
        r#"{"ttl":-1}"#,
        r#"{"ttl":60,"ttl":60}"#,
        r#"{"ttl":null}"#,
    ] {
        assert_eq!(ttl(wrong), (None, Err(400)), "{wrong}");
    }
    assert_eq!(ttl(r#"{"ttl":0}"#), (Some(0), Err(400)));
    assert_eq!(ttl(r#"{"ttl":86401}"#), (Some(86_401), Err(400)));
}

#[test]
fn the_content_type_is_json_and_the_body_not_too_long() {
    let refusal = |content_type, body| ttl(content_type, body).1.err();
    let body = Some(r#"{"ttl":60}"#);
    assert_eq!(refusal("application/json; charset=utf-8", body), None);
    assert_eq!(refusal("Application/JSON", body), None);
    assert_eq!(refusal("text/plain", body), Some(415));
    assert_eq!(refusal("application/jsonl", body), Some(415));
    assert_eq!(refusal("application/json", None), Some(413));
}

fn ask(uri: &str, body: &str) -> (CallRecord, Result<SessionAsk, u16>) {
    let mut record = CallRecord::new(Call::Session, 0);
    let parts = parts(uri, "application/json");
    let asked = session(&parts, Some(body.as_bytes()), &mut record);
    (record, asked.map_err(|(status, _)| status.as_u16()))
}

#[test]
fn a_session_is_for_a_user_and_a_workflow() {
    let (record, asked) = ask(
        "/api/sessions?workflowId=a%20%2B+%C3%A9",
        r#"{"metadata":{"plan":"gold","externalUserId":"ann"},"locale":"en","x":1}"#,
    );
    let asked = asked.unwrap();
    assert_eq!((&*asked.workflow, &*asked.user), ("a ++é", "ann"));
    assert_eq!(asked.locale.as_deref(), Some("en"));
    assert_eq!(record.metadata.unwrap()["plan"], "gold");
}

#[test]
fn a_session_without_a_workflow_is_refused_but_recorded() {
    for uri in ["/", "/?workflowId=", "/?workflowId=a&workflowId=b", "/?workflowId=%FF"] {
        let (record, asked) = ask(uri, r#"{"metadata":{"externalUserId":"ann"}}"#);
        assert_eq!(asked.unwrap_err(), 400, "{uri}");
        assert_eq!(record.external_user_id.as_deref(), Some("ann"));
    }
}

#[test]
fn a_session_without_a_user_is_refused() {
    for (body, refusal) in [
        ("", 400),
        ("null", 400),
        (r#"[{"externalUserId":"ann"}]"#, 400),
        (r#"{"metadata":"#, 400),
        ("{}", 422),
        (r#"{"metadata":null}"#, 422),
        (r#"{"metadata":["ann"]}"#, 422),
        (r#"{"metadata":{}}"#, 422),
        (r#"{"metadata":{"externalUserId":7}}"#, 422),
        (r#"{"metadata":{"externalUserId":""}}"#, 422),
        (r#"{"metadata":{"externalUserId":"a","externalUserId":"b"}}"#, 422),
        (r#"{"metadata":{"externalUserId":"a"},"locale":7}"#, 422),
    ] {
        let (record, asked) = ask("/?workflowId=w", body);
        assert_eq!(asked.unwrap_err(), refusal, "{body}");
        assert_eq!(record.workflow_id.as_deref(), Some("w"));
    }
}
