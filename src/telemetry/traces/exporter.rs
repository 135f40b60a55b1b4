//! The way to the collector: OTLP over HTTP, in batches, on a thread of its own.
//!
//! Spans wait in a queue of bounded length, and what does not fit is dropped: whatever the collector
//! does, nobody waits for it. The thread has a runtime of its own, so that the one that serves
//! requests need not encode, encrypt and send, too.

use std::{
    env, fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{Key, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter as Exporter},
};
use reqwest::{Certificate, Client, Identity, redirect};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::Inner;
use crate::config::is_loopback;

/// Limit of one export, unless the environment sets another.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A setting that is not empty: the one for traces, else the one for all that OTLP carries.
fn setting(name: &str) -> Option<String> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn is(name: &str, value: &str) -> bool {
    env::var(name).is_ok_and(|set| set.eq_ignore_ascii_case(value))
}

/// A tracer that exports to the collector, if the environment names one and nothing speaks against it.
pub(super) fn from_env() -> Result<Option<Inner>, &'static str> {
    let Some(endpoint) = setting("ENDPOINT") else { return Ok(None) };
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let endpoint = Url::parse(&endpoint)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or("OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is no URL for http or https")?;
    if setting("PROTOCOL").is_some_and(|protocol| protocol != "http/protobuf") {
        return Err("of OTEL_EXPORTER_OTLP_PROTOCOL only http/protobuf is there");
    }
    let timeout = setting("TIMEOUT").and_then(|millis| millis.parse().ok());
    let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
    // The rest of the family is read by the library: headers, compression, batches, sampler.
    let inner = SpanExporter::builder()
        .with_http()
        .with_http_client(client(&endpoint, timeout)?)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(timeout)
        .build()
        .map_err(|_| "the settings in OTEL_EXPORTER_OTLP_… do not fit together")?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|_| "no runtime for the exporter")?;
    let exporter = OwnRuntime { inner, runtime, failing: AtomicBool::new(false) };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .with_resource(resource())
        .build();
    let tracer = provider.tracer("handoff");
    Ok(Some(Inner { provider, tracer }))
}

/// By the rules for the platform: no redirect, which would carry the headers to who knows where, and
/// no proxy for what is not encrypted.
fn client(endpoint: &Url, timeout: Duration) -> Result<Client, &'static str> {
    const AUTHORITY: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE names no file with PEM certificates";
    const OURS: &str =
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and …_CLIENT_KEY name no such PEM files";
    let mut client = Client::builder().redirect(redirect::Policy::none()).timeout(timeout);
    if endpoint.scheme() == "http" {
        // No certificate will be seen, so none has to be there to compare it with.
        client = client.no_proxy().tls_certs_only([]);
    } else if is_loopback(endpoint) {
        client = client.no_proxy();
    }
    if let Some(file) = setting("CERTIFICATE") {
        let pem = fs::read(file).map_err(|_| AUTHORITY)?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|_| AUTHORITY)?;
        client = client.tls_certs_only(authorities);
    }
    if let (Some(certificate), Some(key)) = (setting("CLIENT_CERTIFICATE"), setting("CLIENT_KEY")) {
        let [certificate, key] = [certificate, key].map(|file| fs::read(file).map_err(|_| OURS));
        let identity = Identity::from_pem(&[certificate?, key?].join(&b'\n'));
        client = client.identity(identity.map_err(|_| OURS)?);
    }
    client.build().map_err(|_| "TLS cannot be set up for OTEL_EXPORTER_OTLP_ENDPOINT")
}

/// Who we are: what the environment says goes first.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let given = Resource::builder().build();
    let has = |key: &'static str| given.get(&Key::from_static_str(key));
    let unnamed =
        has("service.name").is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let mut resource = Resource::builder();
    if unnamed {
        resource = resource.with_service_name("handoff");
    }
    if has("service.version").is_none() {
        resource = resource.with_attribute(version);
    }
    resource.build()
}

/// An exporter that is driven where it is called: on the thread that collects batches.
#[derive(Debug)]
struct OwnRuntime {
    inner: SpanExporter,
    runtime: Runtime,
    failing: AtomicBool,
}

impl Exporter for OwnRuntime {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let exported = self.runtime.block_on(self.inner.export(batch));
        let fails = exported.is_err();
        // Told once, until it is over.
        match (self.failing.swap(fails, Ordering::Relaxed), &exported) {
            (false, Err(error)) => {
                let status = status(&error.to_string());
                tracing::warn!(
                    status,
                    "the collector takes no spans; they are dropped until it does"
                );
            }
            (true, Ok(())) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        std::future::ready(exported)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The status that the collector answered with, out of what the library says of it. None where there
/// was no answer.
fn status(error: &str) -> Option<u16> {
    let words = error.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter_map(|word| word.parse().ok()).find(|status| (100..600).contains(status))
}
