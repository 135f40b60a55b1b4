//! Confirms and returns of many events that are published concurrently.

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
    let body = EventBody::Ready {
        request_id,
        user_id: "ann",
        workflow_id: "w",
        session_id: "s",
        url: "https://idv.example",
        mobile_url: "https://idv.example",
        expires_at: SystemTime::now(),
        reused: false,
    };
    Event::new(&body, SystemTime::now())
}

fn failed(request_id: &str) -> Event {
    let reason = FailedReason { code: ReasonCode::InvalidRequest, message: "m".to_owned() };
    let body = EventBody::Failed {
        request_id,
        user_id: None,
        workflow_id: None,
        reason: &reason,
        attempts: 1,
    };
    Event::new(&body, SystemTime::now())
}

#[tokio::test]
async fn each_concurrent_event_gets_its_own_outcome() {
    let env = TestEnv::start().await;
    let url = std::env::var("HANDOFF_AMQP_URL").unwrap();
    let exchange = format!("{}.half", env.rabbitmq.event_exchange);
    // Only `handoff.ready` is routed: each `handoff.failed` comes back with a `basic.return`.
    let channel = env.rabbitmq.open_channel().await;
    let options = ExchangeDeclareOptions { auto_delete: true, ..Default::default() };
    let name = || exchange.as_str().into();
    let none = FieldTable::default;
    channel.exchange_declare(name(), ExchangeKind::Topic, options, none()).await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), exclusive, none()).await.unwrap().name().clone();
    channel
        .queue_bind(queue, name(), "handoff.ready".into(), Default::default(), none())
        .await
        .unwrap();

    let topology = Topology::new(&BrokerSettings {
        event_exchange: exchange.clone(),
        declare: false,
        ..env.parsed_settings().broker
    });
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let publisher = Publisher::new(Arc::new(connection), Arc::new(topology), 64, Metrics::new());
    let span = Span::untraced(TraceContext::from_headers(None, None));
    for (in_flight, every) in [(8, 2), (64, 7), (256, 50), (256, 2)] {
        let mut wrong = stream::iter(0..2_000)
            .map(|number| {
                let publisher = &publisher;
                let span = &span;
                let is_unroutable = number % every == 0;
                async move {
                    let id = format!("r-{in_flight}-{every}-{number}");
                    let event = if is_unroutable { failed(&id) } else { ready(&id) };
                    let outcome = publisher.publish_event(&event, &id, span).await;
                    let expected =
                        if is_unroutable { Err(PublishError::Unroutable) } else { Ok(()) };
                    (outcome != expected).then_some((id, outcome))
                }
            })
            .buffer_unordered(in_flight)
            .filter_map(std::future::ready)
            .boxed_local();
        assert_eq!(wrong.next().await, None);
    }
}
