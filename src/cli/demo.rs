//! `handoff demo`: shows requests, their events and their links, from start to end.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use secrecy::ExposeSecret;
use serde_json::json;
use time::OffsetDateTime;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use super::{
    errors::CliError,
    logging,
    output::{print_line, qr_code},
    signals,
};
use crate::{
    client::{Client, ReceivedEvent},
    config::{BrokerSettings, DEMO_LOG, DEMO_WORKFLOW, DemoFlags, RunFlags, Settings, table},
    health,
    message::READY,
    sandbox::{Options, Sandbox},
    worker,
};

/// The users. The first one sends two more requests at the end, to show a reused link.
const USERS: [&str; 5] = ["ann", "bob", "chloé", "佐藤", "zoë & co"];
/// Minimum duration of a simulated platform call.
const LATENCY: Duration = Duration::from_millis(80);
/// Maximum random addition to it.
const JITTER: Duration = Duration::from_millis(40);
/// How long to wait for the next event, or for a page.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a worker and a simulated platform, and shows a few requests
///
/// Uses the RabbitMQ and Redis that it is given. It publishes a few requests, prints each event, opens
/// each link, and prints a summary. The exit status is 0 only if every event arrived and every link
/// opened. The request queue must not be in use.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff demo\n  \
    handoff demo --flow deeplink\n  \
    handoff demo --serve    # runs until Ctrl-C, and suggests commands to try")]
pub(super) struct DemoArgs {
    /// Keep everything running until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// How the platform makes a link [default: token] [env: HANDOFF_IDV_FLOW]
    #[arg(long, value_name = "FLOW")]
    flow: Option<DemoFlow>,
    #[command(flatten)]
    settings: DemoFlags,
}

/// The platform's flow.
#[derive(Clone, Copy, ValueEnum)]
enum DemoFlow {
    /// A call for a token, and one for a session
    Token,
    /// One call for the link
    Deeplink,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), CliError> {
    let options = Options { latency: LATENCY, jitter: JITTER, ..Options::default() };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(CliError::failed)?;
    let sandbox = Sandbox::start(listener, options).map_err(CliError::failed)?;
    let settings = settings(args.settings, args.flow, &sandbox)?;
    logging::init(&settings.log);
    let signals = signals::listen()?;
    signals.cut_short(demonstrate(settings, &sandbox, args.serve, &signals.shutdown)).await?
}

async fn demonstrate(
    settings: Settings,
    sandbox: &Sandbox,
    serve: bool,
    interrupted: &CancellationToken,
) -> Result<(), CliError> {
    let broker = settings.broker.clone();
    let listener = health::listen(settings.worker.http_addr).await.map_err(CliError::failed)?;
    let probes = listener.local_addr().map_err(CliError::failed)?;
    let mut client = connect(&broker).await?;

    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker::run(settings, listener, stop.clone()));
    let shown = interrupted.run_until_cancelled(show(&mut client, sandbox)).await;
    let mut shown = shown.unwrap_or_else(|| Err(CliError::Failed("interrupted".to_owned())));
    if shown.is_ok() && serve {
        shown = print_line(next_steps(&broker, sandbox, &format!("http://{probes}")));
        if shown.is_ok() {
            interrupted.cancelled().await;
        }
    }
    stop.cancel();
    let stopped = worker.await;
    client.close().await;
    sandbox.stop().await;
    shown?;
    stopped
        .map_err(|_| CliError::Failed("the worker panicked".to_owned()))?
        .map_err(CliError::failed)
}

/// Points the settings at the sandbox. The default key prefix is new, so that nothing is reused.
fn settings(
    flags: DemoFlags,
    flow: Option<DemoFlow>,
    sandbox: &Sandbox,
) -> Result<Settings, CliError> {
    let raw = match flow {
        Some(DemoFlow::Token) => flags.0.with(&table::IDV_FLOW.spec, "token"),
        Some(DemoFlow::Deeplink) => flags.0.with(&table::IDV_FLOW.spec, "deeplink"),
        None => flags.0,
    };
    let raw = raw
        .with(&table::IDV_URL.spec, sandbox.url())
        .with(&table::IDV_PUBLIC_URL.spec, sandbox.url())
        .with(&table::IDV_API_KEY.spec, Options::DEFAULT_API_KEY)
        .with(&table::IDV_ALLOW_HTTP.spec, "false")
        .with_default(&table::IDV_WORKFLOW_ID.spec, DEMO_WORKFLOW)
        // Links of an earlier demo lead to a sandbox that has stopped.
        .with_default(&table::KEY_PREFIX.spec, format!("handoff-demo-{}", Uuid::new_v4().simple()))
        .with_default(&table::HTTP_ADDR.spec, "127.0.0.1:0")
        .with_default(&table::LOG.spec, DEMO_LOG);
    Ok(Settings::parse(&RunFlags(raw))?)
}

/// Connects. Refuses a queue in use, so that no real request reaches the simulated platform.
async fn connect(broker: &BrokerSettings) -> Result<Client, CliError> {
    // The demo often runs on a machine without RabbitMQ.
    let client = Client::connect(broker).await.map_err(|error| {
        CliError::Failed(format!(
            "{error}\nThe demo needs RabbitMQ and Redis: `make demo` starts both, or set \
             HANDOFF_AMQP_URL and HANDOFF_REDIS_URL to yours."
        ))
    })?;
    let traffic = client.request_queue_counts().await.map_err(CliError::failed)?;
    if traffic.consumers == 0 && traffic.messages == 0 {
        return Ok(client);
    }
    client.close().await;
    Err(CliError::Failed(format!(
        "the queue `{}` is in use ({} consumers, {} messages): set HANDOFF_AMQP_URL to another RabbitMQ \
         or virtual host",
        broker.queue, traffic.consumers, traffic.messages
    )))
}

/// Publishes requests, prints their events, and collects the figures of the summary.
struct Show<'a> {
    client: &'a mut Client,
    links: Vec<String>,
    durations: Vec<Duration>,
    new_links: usize,
}

async fn show(client: &mut Client, sandbox: &Sandbox) -> Result<(), CliError> {
    let mut show = Show { client, links: vec![], durations: vec![], new_links: 0 };
    print_line(format_args!("A worker and a simulated platform are running: {}\n", sandbox.url()))?;
    print_line(format_args!(
        "{:<12}  {:<7}  {:<6}  {:>8}  user",
        "time (UTC)", "outcome", "link", "took"
    ))?;
    show.request(&USERS).await?;
    // The link exists, so both requests reuse it without a platform call.
    show.request(&[USERS[0]; 2]).await?;

    let http = reqwest::Client::builder().no_proxy().build().map_err(CliError::failed)?;
    for link in &show.links {
        open(&http, link).await?;
    }
    if let Some(link) = show.links.last() {
        print_line(format_args!(
            "\nThe last link, for a browser on this machine:\n{}\n{link}\n",
            qr_code(link)
        ))?;
    }
    show.print_summary(sandbox)
}

impl Show<'_> {
    /// Publishes a request for each user, and prints events until each request has one.
    async fn request(&mut self, users: &[&str]) -> Result<(), CliError> {
        let mut pending = HashMap::new();
        for user in users {
            let id = Uuid::new_v4().to_string();
            let body = json!({ "userId": user }).to_string();
            pending.insert(id.clone(), Instant::now());
            let published = self.client.requester.publish(&id, body.as_bytes()).await;
            published.map_err(CliError::failed)?;
        }
        while !pending.is_empty() {
            let event = timeout(TIMEOUT, self.client.next_event()).await.map_err(|_| {
                let missing = pending.len();
                CliError::Failed(format!("{missing} events did not arrive within {TIMEOUT:?}"))
            })?;
            let event = event.map_err(CliError::failed)?;
            if let Some(published_at) = pending.remove(&event.data.request_id) {
                self.print_event(&event, published_at.elapsed())?;
            }
        }
        Ok(())
    }

    fn print_event(&mut self, event: &ReceivedEvent, took: Duration) -> Result<(), CliError> {
        let (READY, Some(url)) = (event.kind.as_str(), &event.data.url) else {
            let why = event.data.reason.as_ref().map_or("without a reason", |r| &r.message);
            return Err(CliError::Failed(format!("a request failed: {why}")));
        };
        let is_reused = event.data.reused == Some(true);
        let (hour, minute, second, milli) = OffsetDateTime::now_utc().to_hms_milli();
        print_line(format_args!(
            "{hour:02}:{minute:02}:{second:02}.{milli:03}  {:<7}  {:<6}  {:>5} ms  {}",
            "ready",
            if is_reused { "reused" } else { "new" },
            took.as_millis(),
            event.data.user_id.as_deref().unwrap_or_default(),
        ))?;
        self.durations.push(took);
        self.new_links += usize::from(!is_reused);
        self.links.push(url.clone());
        Ok(())
    }

    fn print_summary(mut self, sandbox: &Sandbox) -> Result<(), CliError> {
        self.durations.sort_unstable();
        let count = self.durations.len();
        let stats = sandbox.stats();
        print_line(format_args!(
            "{count} requests, {count} events: {} new links, {} reused; every link opened.\n\
             {} sessions made with {} platform calls of {} to {} ms each.\n\
             From request to event: median {} ms, maximum {} ms.",
            self.new_links,
            count - self.new_links,
            stats.sessions_made,
            stats.token_calls.total + stats.session_calls.total + stats.deeplink_calls.total,
            LATENCY.as_millis(),
            (LATENCY + JITTER).as_millis(),
            self.durations[count / 2].as_millis(),
            self.durations[count - 1].as_millis(),
        ))
    }
}

/// Opens a link as a person does: its page, and the page that the button there leads to.
async fn open(http: &reqwest::Client, link: &str) -> Result<(), CliError> {
    let failed = |what: &str| CliError::Failed(format!("a link did not open: {what}"));
    let outer = Url::parse(link).map_err(|_| failed("it is no URL"))?;
    let inner = outer.query_pairs().find(|(key, _)| key == "url").map(|(_, url)| url);
    // In the one-call flow there is no other page before `/mobile`.
    let pages = match &inner {
        Some(inner) => vec![("/capture", link), ("/mobile", &**inner)],
        None => vec![("/mobile", link)],
    };
    for (page, url) in pages {
        let response = http.get(url).timeout(TIMEOUT).send().await;
        let status = response.map_err(|error| failed(&error.without_url().to_string()))?.status();
        if !status.is_success() {
            let status = status.as_u16();
            return Err(failed(&format!("the page {page} answered with status {status}")));
        }
    }
    Ok(())
}

fn next_steps(broker: &BrokerSettings, sandbox: &Sandbox, probes: &str) -> String {
    let nodes = broker.nodes.current();
    let amqp = nodes.text().expose_secret();
    // RabbitMQ's default password is no secret. Any other is not shown.
    let amqp = if amqp.contains("//guest:guest@") { amqp } else { "…" };
    let sandbox = sandbox.url();
    let handoff = std::env::args().next().unwrap_or_else(|| "handoff".to_owned());
    format!(
        "\nEverything runs until Ctrl-C. In another terminal, try:\n\n  \
         export HANDOFF_AMQP_URL={amqp}\n  \
         {handoff} request --user dora --qr\n  \
         {handoff} request --user dora --renew\n  \
         curl {probes}/metrics\n  \
         curl {probes}/readyz\n  \
         curl {sandbox}/sandbox/stats\n  \
         curl -X PUT {sandbox}/sandbox/faults -d '{{\"session\": {{\"status\": 503, \"times\": 3}}}}'\n  \
         {handoff} request --user eve\n\n\
         For more about the simulated platform, open {sandbox}\n"
    )
}
