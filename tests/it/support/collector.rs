//! An OTLP collector that keeps the spans it receives.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span as Sent, span::SpanKind, status::StatusCode as Code},
};
use prost::Message;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::wait::within_timeout;

/// A span as it was received, ids in hexadecimal.
#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub kind: SpanKind,
    pub trace_id: String,
    pub span_id: String,
    pub parent_id: String,
    pub tracestate: String,
    pub attributes: BTreeMap<String, String>,
    pub failed: bool,
    /// The attributes of the process that sent it.
    pub resource: BTreeMap<String, String>,
}

#[derive(Default)]
struct Shared {
    spans: Mutex<Vec<Span>>,
    headers: Mutex<Vec<HeaderMap>>,
    count: watch::Sender<usize>,
    hangs: bool,
    status: Mutex<Option<StatusCode>>,
}

/// A server on this machine. Stops when it is dropped.
pub struct Collector {
    pub url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Collector {
    /// Starts one that accepts every export.
    pub async fn start() -> Self {
        Self::serve(Shared::default()).await
    }

    /// Starts one that reads exports and never answers.
    pub async fn start_hanging() -> Self {
        Self::serve(Shared { hangs: true, ..Shared::default() }).await
    }

    async fn serve(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { url, shared, server }
    }

    /// Refuses exports with this status, or accepts them.
    pub fn set_status(&self, status: Option<u16>) {
        *self.shared.status.lock().unwrap() = status.map(|s| StatusCode::from_u16(s).unwrap());
    }

    pub fn spans(&self) -> Vec<Span> {
        self.shared.spans.lock().unwrap().clone()
    }

    /// How many exports it has received.
    pub fn exports(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// A header of the latest export.
    pub fn header(&self, name: &str) -> String {
        let headers = self.shared.headers.lock().unwrap();
        headers.last().unwrap()[name].to_str().unwrap().to_owned()
    }

    /// Waits until it has received `times` exports.
    pub async fn wait_for_exports(&self, times: usize) {
        let mut count = self.shared.count.subscribe();
        within_timeout("an export", count.wait_for(|count| *count >= times)).await.unwrap();
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let refused = *shared.status.lock().unwrap();
    if refused.is_none() {
        for from in request.resource_spans {
            let resource = attributes(from.resource.unwrap().attributes);
            let sent = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            shared.spans.lock().unwrap().extend(sent.map(|sent| span(sent, &resource)));
        }
    }
    shared.headers.lock().unwrap().push(headers);
    shared.count.send_modify(|count| *count += 1);
    if shared.hangs {
        std::future::pending::<()>().await;
    }
    refused.unwrap_or(StatusCode::OK)
}

fn span(sent: Sent, resource: &BTreeMap<String, String>) -> Span {
    assert!(sent.events.is_empty() && sent.links.is_empty());
    assert!(sent.start_time_unix_nano <= sent.end_time_unix_nano);
    let status = sent.status.clone().unwrap_or_default();
    assert_eq!(status.message, "");
    Span {
        kind: sent.kind(),
        name: sent.name,
        trace_id: hex(&sent.trace_id),
        span_id: hex(&sent.span_id),
        parent_id: hex(&sent.parent_span_id),
        tracestate: sent.trace_state,
        attributes: attributes(sent.attributes),
        failed: status.code() == Code::Error,
        resource: resource.clone(),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    list.into_iter().map(|kv| (kv.key, text(kv.value.unwrap().value.unwrap()))).collect()
}
