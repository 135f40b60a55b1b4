use axum::{body::Body, http::Request};

use super::*;
use crate::sandbox::call::Endpoint;

/// A call with this body; `None`: a body that is too long.
async fn call(endpoint: Endpoint, uri: &str, content_type: &str, body: Option<&str>) -> ApiCall {
    let body = body.map_or_else(|| " ".repeat(65 * 1024), str::to_owned);
    let request = Request::builder().uri(uri).header("content-type", content_type);
    let request = request.body(Body::from(body)).unwrap();
    ApiCall::read(endpoint, request).await
}

async fn parse_ttl(content_type: &str, body: Option<&str>) -> (Option<u64>, Result<Duration, u16>) {
    let mut record = CallRecord::new(Endpoint::Token, 0);
    let call = call(Endpoint::Token, "/", content_type, body).await;
    let ttl = token(&call, &mut record);
    (record.ttl, ttl.map_err(|refusal| refusal.status.as_u16()))
}

async fn parse_session(uri: &str, body: &str) -> (CallRecord, Result<SessionRequest, u16>) {
    let mut record = CallRecord::new(Endpoint::Session, 0);
    let call = call(Endpoint::Session, uri, "application/json", Some(body)).await;
    let request = session(&call, &mut record);
    (record, request.map_err(|refusal| refusal.status.as_u16()))
}

#[tokio::test]
async fn a_ttl_is_1_to_86400_whole_seconds() {
    let ttl = async |body| parse_ttl("application/json", Some(body)).await;
    assert_eq!(ttl(r#"{"ttl":1}"#).await, (Some(1), Ok(Duration::from_secs(1))));
    let day = Duration::from_secs(86_400);
    assert_eq!(ttl(r#" {"ttl": 86400, "other": []}"#).await, (Some(86_400), Ok(day)));
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
        assert_eq!(ttl(wrong).await, (None, Err(400)), "{wrong}");
    }
    assert_eq!(ttl(r#"{"ttl":0}"#).await, (Some(0), Err(400)));
    assert_eq!(ttl(r#"{"ttl":86401}"#).await, (Some(86_401), Err(400)));
}

#[tokio::test]
async fn the_body_is_json_of_at_most_64_kib() {
    let refusal = async |content_type, body| parse_ttl(content_type, body).await.1.err();
    let body = Some(r#"{"ttl":60}"#);
    assert_eq!(refusal("application/json; charset=utf-8", body).await, None);
    assert_eq!(refusal("Application/JSON", body).await, None);
    assert_eq!(refusal("text/plain", body).await, Some(415));
    assert_eq!(refusal("application/jsonl", body).await, Some(415));
    assert_eq!(refusal("application/json", None).await, Some(413));
}

#[tokio::test]
async fn a_session_has_a_user_and_a_workflow() {
    let (record, request) = parse_session(
        "/api/sessions?workflowId=a%20%2B+%C3%A9",
        r#"{"metadata":{"plan":"gold","externalUserId":"ann"},"locale":"en","x":1}"#,
    )
    .await;
    let request = request.unwrap();
    assert_eq!((&*request.workflow, &*request.user), ("a ++é", "ann"));
    assert_eq!(request.locale.as_deref(), Some("en"));
    assert_eq!(serde_json::to_value(record).unwrap()["metadata"]["plan"], "gold");
}

#[tokio::test]
async fn a_session_without_a_workflow_is_refused_but_recorded() {
    for uri in ["/", "/?workflowId=", "/?workflowId=a&workflowId=b", "/?workflowId=%FF"] {
        let (record, request) =
            parse_session(uri, r#"{"metadata":{"externalUserId":"ann"}}"#).await;
        assert_eq!(request.unwrap_err(), 400, "{uri}");
        assert_eq!(record.external_user_id.as_deref(), Some("ann"));
    }
}

#[tokio::test]
async fn a_session_without_a_user_is_refused() {
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
        let (record, request) = parse_session("/?workflowId=w", body).await;
        assert_eq!(request.unwrap_err(), refusal, "{body}");
        assert_eq!(record.workflow_id.as_deref(), Some("w"));
    }
}
