//! The bare loop: the baseline that `handoff run` is compared with, not a worker to run.
//!
//! It does the main job and assumes that nothing fails: consume, look up the link in Redis, make a
//! token and a session, store the link, publish the event (confirmed and mandatory), and ack. It
//! has no retries, leases, single-flight, logs or metrics. It reads the settings of `handoff run`.
//! With the argument `tuned` it has one thread and small buffers.

use std::{env::var, error::Error, sync::Arc};

use deadpool_redis::redis::{
    self, AsyncCommands, AsyncConnectionConfig, aio::MultiplexedConnection,
};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions,
    },
    types::FieldTable,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, header::AUTHORIZATION};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    request_id: &'a str,
    user_id: &'a str,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    authorization: String,
}

#[derive(Deserialize)]
struct SessionAnswer {
    id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    specversion: &'a str,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    datacontenttype: &'a str,
    data: EventData<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventData<'a> {
    request_id: &'a str,
    user_id: &'a str,
    url: &'a str,
    reused: bool,
}

struct BareLoop {
    http: Client,
    redis: MultiplexedConnection,
    publishing: Channel,
    events: String,
    platform: String,
    key: String,
    workflow: String,
}

fn main() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut amqp = var("HANDOFF_AMQP_URL")?;
    if std::env::args().nth(1).as_deref() == Some("tuned") {
        // lapin allocates 64 buffers of this size.
        amqp.push_str("?frame_max=16384");
        return Builder::new_current_thread().enable_all().build()?.block_on(run(amqp));
    }
    Builder::new_multi_thread().enable_all().build()?.block_on(run(amqp))
}

async fn run(amqp: String) -> Result<()> {
    let concurrency: u16 = var("HANDOFF_CONCURRENCY")?.parse()?;
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await?;
    let consuming = connection.create_channel().await?;
    consuming.basic_qos(concurrency, BasicQosOptions::default()).await?;
    let publishing = connection.create_channel().await?;
    publishing.confirm_select(ConfirmSelectOptions::default()).await?;
    let platform = var("HANDOFF_IDV_URL")?;
    let mut http = Client::builder().no_proxy();
    if !platform.starts_with("https:") {
        http = http.tls_certs_only([]);
    }
    let bare = Arc::new(BareLoop {
        http: http.build()?,
        // Without a limit: 1,024 TLS handshakes keep all threads busy for longer than the default.
        redis: redis::Client::open(var("HANDOFF_REDIS_URL")?)?
            .get_multiplexed_async_connection_with_config(
                &AsyncConnectionConfig::new()
                    .set_connection_timeout(None)
                    .set_response_timeout(None),
            )
            .await?,
        publishing,
        events: var("HANDOFF_EVENT_EXCHANGE")?,
        platform,
        key: var("HANDOFF_IDV_API_KEY")?,
        workflow: var("HANDOFF_IDV_WORKFLOW_ID")?,
    });
    let mut deliveries = consuming
        .basic_consume(
            var("HANDOFF_QUEUE")?.into(),
            "floor".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let slots = Arc::new(Semaphore::new(concurrency.into()));
    let mut shutdown = signal(SignalKind::terminate())?;
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery.ok_or("RabbitMQ cancelled the consumer")??,
            _ = shutdown.recv() => break,
        };
        let bare = Arc::clone(&bare);
        tokio::spawn(async move {
            if let Err(error) = bare.serve(delivery).await {
                eprintln!("floor: {error}");
                std::process::exit(1);
            }
            drop(slot);
        });
    }
    // All acks must be sent before the exit, or the next subject would receive redeliveries.
    let _all_slots = slots.acquire_many(concurrency.into()).await?;
    Ok(connection.close(200, "done".into()).await?)
}

impl BareLoop {
    async fn serve(&self, delivery: Delivery) -> Result<()> {
        let request: Request<'_> = serde_json::from_slice(&delivery.data)?;
        let key = format!("floor:{}", request.user_id);
        let mut redis = self.redis.clone();
        let found: Option<String> = redis.get(&key).await?;
        let reused = found.is_some();
        let link = match found {
            Some(link) => link,
            None => {
                let link = self.link(&request).await?;
                redis.set_ex::<_, _, ()>(&key, &link, 3600).await?;
                link
            }
        };
        self.publish(&request, &link, reused).await?;
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(())
    }

    async fn link(&self, request: &Request<'_>) -> Result<String> {
        let token: TokenAnswer = self
            .call(
                format!("{}/api/device/ephemeral", self.platform),
                &self.key,
                json!({ "ttl": 3600 }),
            )
            .await?;
        let token = token.authorization;
        let session: SessionAnswer = self
            .call(
                format!("{}/api/sessions?workflowId={}", self.platform, self.workflow),
                &token,
                json!({ "metadata": { "externalUserId": request.user_id, "request": request.metadata } }),
            )
            .await?;
        let inner = format!(
            "{}/mobile?authorization={}&sessionId={}",
            self.platform,
            utf8_percent_encode(&token, NON_ALPHANUMERIC),
            session.id
        );
        let inner = utf8_percent_encode(&inner, NON_ALPHANUMERIC);
        Ok(format!("{}/capture?url={inner}", self.platform))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        url: String,
        authorization: &str,
        body: impl Serialize,
    ) -> Result<T> {
        let call = self.http.post(url).header(AUTHORIZATION, authorization).json(&body);
        Ok(call.send().await?.error_for_status()?.json().await?)
    }

    async fn publish(&self, request: &Request<'_>, link: &str, reused: bool) -> Result<()> {
        let event = serde_json::to_vec(&Event {
            specversion: "1.0",
            id: request.request_id,
            source: "/floor",
            r#type: "handoff.ready",
            datacontenttype: "application/json",
            data: EventData {
                request_id: request.request_id,
                user_id: request.user_id,
                url: link,
                reused,
            },
        })?;
        let properties = BasicProperties::default()
            .with_content_type("application/cloudevents+json".into())
            .with_delivery_mode(2)
            .with_correlation_id(request.request_id.into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self
            .publishing
            .basic_publish(
                self.events.as_str().into(),
                "handoff.ready".into(),
                options,
                &event,
                properties,
            )
            .await?
            .await?;
        match confirm {
            Confirmation::Ack(None) => Ok(()),
            other => Err(format!("an event was not confirmed: {other:?}").into()),
        }
    }
}
