//! `verification.ended`: a bare JSON object, or a CloudEvent around one.

use std::fmt;

use super::{
    RequestId,
    body::{Body, Data, NO_WORKFLOW},
    cloud_event::ENDED,
    field,
};

/// The end of a verification: a session or a user and workflow, or both.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// User and workflow, if both are known.
    pub(crate) user: Option<(String, String)>,
    pub(crate) session_id: Option<String>,
}

/// Withholds the user and the session.
impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending").finish_non_exhaustive()
    }
}

/// The content of a message body.
#[derive(Debug)]
pub(crate) struct DecodedEnding {
    /// The `id` of the CloudEvent, if the body is one.
    pub(crate) id: Option<RequestId>,
    /// The ending, or the rules that it breaks: names, never values.
    pub(crate) ending: Result<Ending, String>,
}

/// Decodes a body of at most `max_bytes`. `default_workflow` applies if the ending names none.
pub(crate) fn decode_ending(
    body: &[u8],
    max_bytes: usize,
    default_workflow: Option<&str>,
) -> DecodedEnding {
    let Body { id, data, .. } = Body::read(body, max_bytes, ENDED);
    DecodedEnding { id, ending: data.and_then(|data| parse(&data, default_workflow)) }
}

/// Parses the data object, and reports all its problems together.
fn parse(data: &Data<'_>, default_workflow: Option<&str>) -> Result<Ending, String> {
    let (fields, mut problems) = data.fields(["userId", "workflowId", "sessionId"])?;
    let [given_user, given_workflow, given_session] = fields.values;
    let user_id = problems.check(given_user, field::user);
    let workflow_id = match given_workflow {
        None => default_workflow.map(str::to_owned),
        Some(_) => problems.check(given_workflow, field::workflow),
    };
    let session_id = problems.check(given_session, field::session);
    if given_session.is_none() {
        if given_user.is_none() {
            problems.add("`sessionId` or `userId` is missing");
        } else if given_workflow.is_none() && workflow_id.is_none() {
            problems.add(NO_WORKFLOW);
        }
    }
    if problems.is_empty() {
        Ok(Ending { user: user_id.zip(workflow_id), session_id })
    } else {
        Err(problems.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(body: &str, default_workflow: Option<&str>) -> Result<Ending, String> {
        decode_ending(body.as_bytes(), 65_536, default_workflow).ending
    }

    fn ending(user: Option<(&str, &str)>, session: Option<&str>) -> Ending {
        Ending {
            user: user.map(|(user, workflow)| (user.to_owned(), workflow.to_owned())),
            session_id: session.map(str::to_owned),
        }
    }

    #[test]
    fn session_or_user_is_enough() {
        let ann = Some(("ann", "w"));
        for (body, default, expected) in [
            (r#"{"userId":"ann","workflowId":"w"}"#, None, ending(ann, None)),
            (r#"{"userId":"ann"}"#, Some("w"), ending(ann, None)),
            (r#"{"sessionId":"s"}"#, None, ending(None, Some("s"))),
            (
                r#"{"sessionId":12345678901234567890}"#,
                None,
                ending(None, Some("12345678901234567890")),
            ),
            (r#"{"sessionId":-0.10}"#, None, ending(None, Some("-0.10"))),
            (
                r#"{"userId":"ann","sessionId":"s","workflowId":null}"#,
                Some("w"),
                ending(ann, Some("s")),
            ),
            (r#"{"userId":"ann","sessionId":"s","other":[]}"#, None, ending(None, Some("s"))),
            (r#"{"workflowId":"w","sessionId":"s"}"#, None, ending(None, Some("s"))),
        ] {
            assert_eq!(decode(body, default), Ok(expected), "{body}");
        }
    }

    #[test]
    fn broken_rules_are_named_without_values() {
        for (body, part) in [
            ("{}", "`sessionId` or `userId` is missing"),
            (r#"{"workflowId":"w"}"#, "`sessionId` or `userId` is missing"),
            (r#"{"userId":"ann"}"#, "`workflowId` is missing"),
            (r#"{"sessionId":""}"#, "`sessionId` must"),
            (r#"{"sessionId":true}"#, "`sessionId` must"),
            (r#"{"sessionId":["secret"]}"#, "`sessionId` must"),
            (r#"{"sessionId":"s","sessionId":"secret"}"#, "`sessionId` appears more than once"),
            (r#"{"sessionId":"s","userId":7}"#, "`userId` must"),
            (r#"{"userId":"ann","workflowId":""}"#, "`workflowId` must"),
            ("[]", "the body is JSON but not an object"),
            (
                r#"{"specversion":"1.0","id":"e","source":"s","type":"verification.requested","data":{"sessionId":"s"}}"#,
                "`type` must be \"verification.ended\"",
            ),
        ] {
            let problem = decode(body, None).unwrap_err();
            assert!(problem.contains(part) && !problem.contains("secret"), "{body}: {problem}");
        }
        assert!(decode(&format!(r#"{{"sessionId":"{}"}}"#, "s".repeat(1_025)), None).is_err());
        assert!(decode(&format!(r#"{{"sessionId":"{}"}}"#, "s".repeat(1_024)), None).is_ok());
    }

    #[test]
    fn ending_in_a_cloud_event_is_decoded() {
        let body = r#"{"specversion":"1.0","id":"e1","source":"/app","type":"verification.ended","data":{"sessionId":"s"}}"#;
        let decoded = decode_ending(body.as_bytes(), 65_536, None);
        assert_eq!(decoded.id.unwrap().as_str(), "e1");
        assert_eq!(decoded.ending, Ok(ending(None, Some("s"))));
        let as_request = super::super::decode_request(body.as_bytes(), 65_536, Some("w"));
        assert!(as_request.is_ending && as_request.request.is_err());
    }
}
