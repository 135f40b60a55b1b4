//! The call of the one-call flow: for a link.

use std::time::SystemTime;

use reqwest::{RequestBuilder, header::HeaderValue};
use serde::Serialize;

use super::{IDEMPOTENCY_KEY, PlatformClient, unique, with_workflow};
use crate::{
    hash,
    message::{Request, RequestId},
    platform::{
        deeplink::Deeplink,
        error::CallError,
        gate::{CallPermit, FailedCall, FailureScope},
    },
    session::Call,
    telemetry::traces::Span,
};

impl PlatformClient {
    /// Makes a session and its link; also returns whether the call was lost and sent again. `earlier_links`: how many links the request has had, all of them ended or
    /// forgotten. `is_repeat`: the platform may be processing an earlier try with the same key.
    ///
    /// As with a token call, a probe and a refused call read the API key's file again.
    ///
    /// # Errors
    /// [`CallError::Transient`], [`CallError::Refused`] or [`CallError::Rejected`].
    pub(crate) async fn deeplink(
        &self,
        permit: CallPermit<'_>,
        request: &Request,
        request_id: &RequestId,
        earlier_links: u32,
        is_repeat: bool,
        span: &Span<'_>,
    ) -> Result<(Deeplink, bool), FailedCall> {
        if permit.is_probe() {
            // Boxed to keep the caller's future small; probes are rare.
            Box::pin(self.key.reload()).await;
        }
        let key = self.key.header();
        let http = || {
            let http = self.deeplink_request(key.clone(), request);
            http.header(IDEMPOTENCY_KEY, unique(idempotency_key(request_id, earlier_links)))
        };
        let parse = self.parse_deeplink;
        let answer = self.call_for_session(&permit, http, is_repeat, span, parse).await;
        if let Err(error @ CallError::Refused { .. }) = &answer
            && !permit.is_probe()
            && self.has_new_key(&key).await
        {
            return Err(FailedCall { error: error.clone(), scope: FailureScope::Pause });
        }
        permit.report(answer)
    }

    /// Checks the API key and the workflow: makes a session that lives 1 s, without passing the gate.
    ///
    /// Also returns the platform's time, if its answer has a valid `Date` header.
    pub(crate) async fn probe_deeplink(
        &self,
        workflow_id: &str,
    ) -> (Result<(), CallError>, Option<SystemTime>) {
        let body =
            serde_json::json!({ "metadata": { "externalUserId": "handoff-doctor" }, "ttl": 1 });
        let url = with_workflow(&self.deeplink_url, workflow_id);
        let request = self.post(url, self.key.header(), &body);
        self.send_probe(Call::Deeplink, request, self.parse_deeplink).await
    }

    fn deeplink_request(&self, key: HeaderValue, request: &Request) -> RequestBuilder {
        #[derive(Serialize)]
        struct DeeplinkBody<'a, M> {
            metadata: M,
            #[serde(skip_serializing_if = "Option::is_none")]
            locale: Option<&'a str>,
            ttl: u64,
        }
        let body = DeeplinkBody {
            metadata: request.metadata(),
            locale: request.locale.as_deref(),
            ttl: self.token_ttl.as_secs(),
        };
        self.post(with_workflow(&self.deeplink_url, &request.workflow_id), key, &body)
    }
}

/// The same for each try of a request, over retries, copies and crashes, until its link has ended or was forgotten.
fn idempotency_key(request_id: &RequestId, earlier_links: u32) -> String {
    hash::hex(&hash::of_pair(request_id.as_str(), &format!("deeplink {earlier_links}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_differ_by_request_and_number_of_links() {
        let key = |id: &str, links| idempotency_key(&RequestId::new(id), links);
        assert_eq!(key("r", 0), key("r", 0));
        assert_ne!(key("r", 0), key("r", 1));
        assert_ne!(key("r", 0), key("s", 0));
        assert_eq!(key("r", 0).len(), 32);
    }
}
