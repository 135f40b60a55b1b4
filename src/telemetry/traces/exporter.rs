//! Exports spans over OTLP/HTTP, in batches, from a separate thread.
//!
//! The queue is bounded and drops what does not fit, so a slow collector delays no request.

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
    trace::{self as sdk, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData},
};
use reqwest::{Certificate, Client, Identity, redirect};
use secrecy::ExposeSecret;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use crate::config::Route;

/// Timeout of an export unless `OTEL_EXPORTER_OTLP_TIMEOUT` sets another.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads `OTEL_EXPORTER_OTLP_TRACES_…`, or else `OTEL_EXPORTER_OTLP_…`; empty means unset.
fn setting(name: &str) -> Option<String> {
    let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn env_is(name: &str, expected: &str) -> bool {
    env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case(expected))
}

/// A tracer that exports its spans to a collector.
#[derive(Debug)]
pub(super) struct Exporter {
    pub(super) provider: SdkTracerProvider,
    pub(super) tracer: SdkTracer,
}

impl Exporter {
    /// Returns `None` if no collector is configured or traces are disabled.
    pub(super) fn from_env() -> Result<Option<Self>, &'static str> {
        let Some(endpoint) = setting("ENDPOINT") else { return Ok(None) };
        if env_is("OTEL_SDK_DISABLED", "true") || env_is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        const NO_URL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT): \
                              must be an http:// or https:// URL";
        let endpoint = Url::parse(&endpoint).ok();
        let endpoint =
            endpoint.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or(NO_URL)?;
        if setting("PROTOCOL").is_some_and(|protocol| protocol != "http/protobuf") {
            return Err(
                "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf, the only supported protocol",
            );
        }
        let timeout = setting("TIMEOUT").and_then(|millis| millis.parse().ok());
        let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
        // The library reads the other variables: headers, compression, batch size, sampler.
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client(&endpoint, timeout)?)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(timeout)
            .build()
            .map_err(
                |_| "OTEL_EXPORTER_OTLP_…: opentelemetry-otlp rejects this combination of settings",
            )?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|_| "the operating system refuses the resources for the exporter's runtime")?;
        let exporter =
            BlockingExporter { inner: exporter, runtime, failing: AtomicBool::new(false) };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .with_resource(resource())
            .build();
        let tracer = provider.tracer("handoff");
        Ok(Some(Self { provider, tracer }))
    }
}

/// Builds an HTTP client that follows no redirect and sends nothing unencrypted through a proxy.
///
/// A redirect would send the headers, which may hold credentials, to another server.
fn client(endpoint: &Url, timeout: Duration) -> Result<Client, &'static str> {
    const AUTHORITIES: &str =
        "OTEL_EXPORTER_OTLP_CERTIFICATE: must name a readable file of PEM certificates";
    const IDENTITY: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and …_CLIENT_KEY: must name \
                            readable PEM files of a certificate and its key";
    const PROXY: &str =
        "HTTPS_PROXY or ALL_PROXY: must be a proxy URL such as http://proxy.example.com:3128";
    let mut client = Client::builder().redirect(redirect::Policy::none()).timeout(timeout);
    if endpoint.scheme() == "http" {
        // Without TLS there is no certificate to verify: do not load the system's.
        client = client.tls_certs_only([]);
    }
    // As for the platform: reqwest's own reading of the environment ignores an invalid proxy.
    let route = Route::from_env(endpoint).map_err(|_| PROXY)?;
    client = match route.proxy() {
        Some(proxy) => {
            let proxy = reqwest::Proxy::all(proxy.url().expose_secret());
            client.proxy(proxy.map_err(|_| PROXY)?)
        }
        None => client.no_proxy(),
    };
    if let Some(file) = setting("CERTIFICATE") {
        let pem = fs::read(file).map_err(|_| AUTHORITIES)?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|_| AUTHORITIES)?;
        client = client.tls_certs_only(authorities);
    }
    if let (Some(certificate), Some(key)) = (setting("CLIENT_CERTIFICATE"), setting("CLIENT_KEY")) {
        let [certificate, key] =
            [certificate, key].map(|file| fs::read(file).map_err(|_| IDENTITY));
        let identity = Identity::from_pem(&[certificate?, key?].join(&b'\n'));
        client = client.identity(identity.map_err(|_| IDENTITY)?);
    }
    client.build().map_err(
        |_| "OTEL_EXPORTER_OTLP_ENDPOINT: TLS setup failed; check the system's CA certificates",
    )
}

/// Returns the resource attributes: name and version as defaults for those of the environment.
fn resource() -> Resource {
    let from_env = Resource::builder().build();
    let get = |key: &'static str| from_env.get(&Key::from_static_str(key));
    let mut resource = Resource::builder();
    if get("service.name").is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        resource = resource.with_service_name("handoff");
    }
    if get("service.version").is_none() {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        resource = resource.with_attribute(version);
    }
    resource.build()
}

/// Exports on the thread of the batch processor, with a runtime for reqwest.
///
/// opentelemetry_sdk 0.33 calls the exporter from a plain thread, where reqwest's async client
/// panics ("there is no reactor running"): open-telemetry/opentelemetry-rust#3125. `reqwest::blocking`
/// would work, too, but starts a second thread.
#[derive(Debug)]
struct BlockingExporter {
    inner: SpanExporter,
    runtime: Runtime,
    failing: AtomicBool,
}

impl sdk::SpanExporter for BlockingExporter {
    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> + Send {
        let exported = self.runtime.block_on(self.inner.export(batch));
        let was_failing = self.failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !was_failing => {
                // Not the error itself: its text may contain the URL and the collector's answer.
                let status = status(&error.to_string());
                tracing::warn!(status, "trace export failed: dropping spans until it succeeds");
            }
            Ok(()) if was_failing => tracing::info!("trace export recovered"),
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

/// Finds the HTTP status in an error of opentelemetry-otlp, which has no field for it.
fn status(error: &str) -> Option<u16> {
    let parts = error.split(|c: char| !c.is_ascii_alphanumeric());
    parts.filter_map(|part| part.parse().ok()).find(|status| (100..600).contains(status))
}
