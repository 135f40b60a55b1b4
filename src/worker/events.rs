//! Publishes a request's event: `handoff.ready` or `handoff.failed`.

use std::{pin::pin, sync::Arc, time::SystemTime};

use tokio_util::sync::CancellationToken;

use super::{log, metadata::Metadata};
use crate::{
    broker::{PublishError, Publisher, until_confirmed},
    handoff::{Failure, Obtained},
    message::{Event, EventBody, FailedReason, InvalidRequest, Request},
    platform::{LinkBuilder, Links},
    telemetry::metrics::Metrics,
};

/// How often `handoff.failed` is offered to queues that refuse it: about two seconds in all.
const FAILED_EVENT_TRIES: u32 = 4;

/// The failure of a request whose link has ended before its event could be published.
const LINK_ENDED: &str = "the link ended before it could be published: the platform's calls take as long as a session lives \
     (HANDOFF_IDV_SESSION_TTL, HANDOFF_IDV_TOKEN_TTL)";

/// Publishes events.
pub(super) struct Events {
    pub(super) links: LinkBuilder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) grace_over: CancellationToken,
}

impl Events {
    /// Publishes `handoff.ready`; returns once RabbitMQ has confirmed it.
    pub(super) async fn ready(
        &self,
        request: &Request,
        obtained: &Obtained,
        metadata: &Metadata,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Result<(), Failure> {
        let session = &obtained.session;
        let now = SystemTime::now();
        if session.expires_at <= now {
            return Err(Failure::Transient(LINK_ENDED.to_owned()));
        }
        let Links { url, mobile_url } = self.links.links(session);
        let body = EventBody::Ready {
            request_id: metadata.request_id.as_str(),
            user_id: &request.user_id,
            workflow_id: &request.workflow_id,
            session_id: &session.id,
            url: &url,
            mobile_url: &mobile_url,
            expires_at: session.expires_at,
            reused: obtained.reused,
        };
        let event = Event::new(&body, now);
        // Pinned: passed by value, it would be stored three times in this future.
        let published =
            pin!(publisher.publish_event(&event, metadata.correlation_id(), &metadata.span));
        // A publish without an answer when the delivery is lost: the redelivery repeats it.
        let published = lost.run_until_cancelled(published).await;
        match published.unwrap_or(Err(PublishError::Disconnected)) {
            Ok(()) => {
                self.observe_end_to_end(metadata);
                Ok(())
            }
            Err(PublishError::Disconnected) => Err(Failure::Interrupted),
            Err(error) => {
                if matches!(error, PublishError::Refused | PublishError::Unconfirmed) {
                    metadata.set_event_refused();
                }
                Err(Failure::Transient(format!("`handoff.ready` not published: {error}")))
            }
        }
    }

    /// Publishes `handoff.failed`. Returns whether a queue took it: if none does, the dead letter is the
    /// only report of the failure.
    ///
    /// # Errors
    /// The delivery is lost, or the grace period is over.
    pub(super) async fn failed(
        &self,
        reason: &FailedReason,
        request: &Result<Request, InvalidRequest>,
        metadata: &Metadata,
        publisher: &Publisher,
        lost: &CancellationToken,
    ) -> Result<bool, PublishError> {
        let request_id = &metadata.request_id;
        let (user_id, workflow_id) = match request {
            Ok(request) => (Some(&request.user_id), Some(&request.workflow_id)),
            Err(invalid) => (invalid.user_id.as_ref(), invalid.workflow_id.as_ref()),
        };
        let body = EventBody::Failed {
            request_id: request_id.as_str(),
            user_id: user_id.map(String::as_str),
            workflow_id: workflow_id.map(String::as_str),
            reason,
            attempts: metadata.attempts,
        };
        let event = Event::new(&body, SystemTime::now());
        let publish = || async {
            match publisher.publish_event(&event, metadata.correlation_id(), &metadata.span).await {
                Ok(()) => Ok(true),
                // No retry: that no queue is bound is the operator's choice.
                Err(PublishError::Unroutable) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let published = until_confirmed(request_id, FAILED_EVENT_TRIES, &self.grace_over, publish);
        let published = lost.run_until_cancelled(published).await;
        match published.unwrap_or(Err(PublishError::Disconnected)) {
            Ok(true) => {
                self.observe_end_to_end(metadata);
                Ok(true)
            }
            Ok(false) => {
                log::failed_event_unroutable(request_id);
                Ok(false)
            }
            Err(error) if error == PublishError::Disconnected || self.grace_over.is_cancelled() => {
                Err(error)
            }
            Err(error) => {
                log::failed_event_refused(request_id, &error);
                Ok(false)
            }
        }
    }

    /// Records the time from the request's publication to the event's confirm. A timestamp in the
    /// future, such as one in milliseconds, is ignored.
    fn observe_end_to_end(&self, metadata: &Metadata) {
        if let Some(published_at) = metadata.published_at
            && let Ok(end_to_end) = SystemTime::now().duration_since(published_at)
        {
            self.metrics.requests.event_confirmed(end_to_end);
        }
    }
}
