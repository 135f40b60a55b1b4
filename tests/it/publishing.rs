//! Many events in flight at a time: each is told its own fate.

use std::{sync::Arc, time::SystemTime};

use futures_util::{StreamExt, stream};
use handoff::{
    broker::{PublishError, Publisher, Topology},
    config::BrokerSettings,
    message::{Event, EventBody, FailedReason, ReasonCode, TraceContext},
    telemetry::{metrics::Metrics, traces::Span},
};
use lapin::{
    Connection, ConnectionProperties, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};

use crate::support::TestEnv;

fn ready(request_id: &str) -> Event {
    let (user_id, workflow_id, session_id, url) = ("ann", "w", "s", "https://idv.example");
    let (expires_at, reused) = (SystemTime::now(), false);
    let body =
        EventBody::Ready { request_id, user_id, workflow_id, session_id, url, expires_at, reused };
    Event::new(&body, SystemTime::now())
}

fn failed(request_id: &str) -> Event {
    let reason = FailedReason { code: ReasonCode::InvalidRequest, message: "m".to_owned() };
    let (user_id, workflow_id) = (None, None);
    let body = EventBody::Failed { request_id, user_id, workflow_id, reason: &reason, attempts: 1 };
    Event::new(&body, SystemTime::now())
}

#[tokio::test]
async fn of_many_events_in_flight_each_is_told_its_own_fate() {
    let env = TestEnv::start().await;
    let url = std::env::var("HANDOFF_AMQP_URL").unwrap();
    let exchange = format!("{}.half", env.rabbitmq.event_exchange);
    // Somebody hears of links, and nobody of failures.
    let channel = env.rabbitmq.open_channel().await;
    let fleeting = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    let (name, none) = (|| exchange.as_str().into(), FieldTable::default);
    channel.exchange_declare(name(), ExchangeKind::Topic, fleeting, none()).await.unwrap();
    let own = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), own, none()).await.unwrap().name().clone();
    let binding =
        channel.queue_bind(queue, name(), "handoff.ready".into(), Default::default(), none());
    binding.await.unwrap();

    let topology = Topology::new(&BrokerSettings {
        url: url.as_str().into(),
        queue: env.rabbitmq.queue.clone(),
        request_exchange: env.rabbitmq.request_exchange.clone(),
        event_exchange: exchange.clone(),
        declare: false,
        retry_delays: Vec::new(),
    });
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let publisher = Publisher::new(Arc::new(connection), Arc::new(topology), 64, Metrics::new());
    let span = Span::untraced(TraceContext::from_headers(None, None));
    for (in_flight, every) in [(8, 2), (64, 7), (256, 50), (256, 2)] {
        let mut wrong = stream::iter(0..2_000)
            .map(|number| {
                let (publisher, span) = (&publisher, &span);
                let unheard = number % every == 0;
                async move {
                    let id = format!("r-{in_flight}-{every}-{number}");
                    let event = if unheard { failed(&id) } else { ready(&id) };
                    let told = publisher.publish_event(&event, &id, span).await;
                    let due = if unheard { Err(PublishError::Unroutable) } else { Ok(()) };
                    (told != due).then_some((id, told))
                }
            })
            .buffer_unordered(in_flight)
            .filter_map(std::future::ready)
            .boxed_local();
        assert_eq!(wrong.next().await, None);
    }
}
