//! `handoff demo`: the main job, from request to opened link, before the eyes of whoever looks.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use clap::Args;
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use super::{CliError, hints, qr, say, signals};
use crate::{
    client::{Client, Received},
    config::{BrokerSettings, DEMO_LOG, DEMO_WORKFLOW, DemoFlags, RunFlags, Settings, table},
    health,
    message::READY,
    sandbox::{Options, Sandbox},
    telemetry::logs,
    worker,
};

/// Who asks for a link. The first one asks again, twice at once, when everybody is served.
const PEOPLE: [&str; 5] = ["ann", "bob", "chloé", "佐藤", "zoë & co"];
/// How long the simulated platform takes over a call.
const LATENCY: Duration = Duration::from_millis(80);
const JITTER: Duration = Duration::from_millis(40);
/// Limit of waiting for the next event.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shows the worker at work, with a simulated platform
///
/// One process runs the platform and a worker, on the RabbitMQ and Redis it is given. It publishes a
/// few requests, shows each event, opens each link, and says how it went. The exit status is 0 only if
/// every event came and every link opened. It wants a queue that nobody else uses.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff demo\n  \
    handoff demo --serve    # goes on until Ctrl-C, and says what to try")]
pub(super) struct DemoArgs {
    /// Leave everything running until Ctrl-C
    #[arg(long)]
    serve: bool,
    #[command(flatten)]
    settings: DemoFlags,
}

pub(super) async fn run(args: DemoArgs) -> Result<(), CliError> {
    let sandbox = start_sandbox().await?;
    let settings = settings(args.settings, &sandbox)?;
    logs::init(&settings.log);
    let signals = signals::listen().map_err(CliError::failed)?;
    signals.obey(demonstrate(settings, &sandbox, args.serve, &signals.shutdown)).await
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
    say(format_args!("A simulated platform runs at {}, and a worker beside it.\n", sandbox.url()))?;
    let shown = tokio::select! {
        shown = show(&mut client, sandbox) => shown,
        () = interrupted.cancelled() => Err(CliError::Failed("interrupted".to_owned())),
    };
    if shown.is_ok() && serve {
        say(what_next(&broker, sandbox, &format!("http://{probes}")))?;
        interrupted.cancelled().await;
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

async fn start_sandbox() -> Result<Sandbox, CliError> {
    let options = Options { latency: LATENCY, jitter: JITTER, ..Options::default() };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(CliError::failed)?;
    Sandbox::start(listener, options).map_err(CliError::failed)
}

/// What was given, with the sandbox for a platform, and names that meet nobody else's.
fn settings(given: DemoFlags, sandbox: &Sandbox) -> Result<Settings, CliError> {
    let given = given
        .0
        .with(&table::IDV_URL.spec, sandbox.url())
        .with(&table::IDV_PUBLIC_URL.spec, sandbox.url())
        .with(&table::IDV_API_KEY.spec, Options::DEFAULT_API_KEY)
        .with(&table::IDV_ALLOW_HTTP.spec, "false")
        .with_default(&table::IDV_WORKFLOW_ID.spec, DEMO_WORKFLOW)
        // Links of an earlier demo lead to a sandbox that is gone.
        .with_default(&table::KEY_PREFIX.spec, format!("handoff-demo-{}", Uuid::new_v4().simple()))
        .with_default(&table::HTTP_ADDR.spec, "127.0.0.1:0")
        .with_default(&table::LOG.spec, DEMO_LOG);
    Ok(Settings::parse(&RunFlags(given))?)
}

/// Connects, and makes sure that no real request comes into the hands of a simulated platform.
async fn connect(broker: &BrokerSettings) -> Result<Client, CliError> {
    let client = Client::connect(broker).await.map_err(hints::demo)?;
    let traffic = client.request_queue_counts().await.map_err(CliError::failed)?;
    if traffic.consumers == 0 && traffic.messages == 0 {
        return Ok(client);
    }
    client.close().await;
    Err(CliError::Failed(format!(
        "the queue `{}` is in use ({} consumers, {} messages): give the demo a RabbitMQ or a virtual \
         host of its own with HANDOFF_AMQP_URL",
        broker.queue, traffic.consumers, traffic.messages
    )))
}

/// One line per event, and what came of it all.
struct Show<'a> {
    client: &'a mut Client,
    asked: HashMap<String, Instant>,
    links: Vec<String>,
    took: Vec<Duration>,
    new: usize,
}

async fn show(client: &mut Client, sandbox: &Sandbox) -> Result<(), CliError> {
    let mut show = Show { client, asked: HashMap::new(), links: vec![], took: vec![], new: 0 };
    say(format_args!("{:<12}  {:<7}  {:<6}  {:>8}  who", "time (UTC)", "outcome", "link", "took"))?;
    for user in PEOPLE {
        show.ask(user).await?;
    }
    show.hear().await?;
    // The link is there already: both get it, and the platform is not asked again.
    show.ask(PEOPLE[0]).await?;
    show.ask(PEOPLE[0]).await?;
    show.hear().await?;

    let http = reqwest::Client::builder().no_proxy().build().map_err(CliError::failed)?;
    for link in &show.links {
        open(&http, link).await?;
    }
    let Show { links, mut took, new, .. } = show;
    if let Some(last) = links.last() {
        say(format_args!(
            "\nThe last link, for a browser on this machine:\n{}\n{last}\n",
            qr::for_terminal(last)
        ))?;
    }
    took.sort_unstable();
    let (median, slowest) = (took[took.len() / 2].as_millis(), took[took.len() - 1].as_millis());
    let stats = sandbox.stats();
    say(format_args!(
        "{} requests, {} events: {new} new links, {} reused; every link opened.\n\
         {} sessions made with {} platform calls of {} to {} ms each.\n\
         From request to event: {median} ms at the median, {slowest} ms at most.",
        took.len(),
        took.len(),
        took.len() - new,
        stats.sessions_made,
        stats.token_calls.total + stats.session_calls.total,
        LATENCY.as_millis(),
        (LATENCY + JITTER).as_millis(),
    ))
}

impl Show<'_> {
    async fn ask(&mut self, user: &str) -> Result<(), CliError> {
        let id = Uuid::new_v4().to_string();
        let body = json!({ "userId": user }).to_string();
        self.asked.insert(id.clone(), Instant::now());
        let requester = self.client.requester();
        requester.publish(&id, body.as_bytes()).await.map_err(CliError::failed)
    }

    /// Shows events until every request has its own.
    async fn hear(&mut self) -> Result<(), CliError> {
        while !self.asked.is_empty() {
            let event = timeout(PATIENCE, self.client.next_event()).await.map_err(|_| {
                let missing = self.asked.len();
                CliError::Failed(format!("{missing} events did not come within {PATIENCE:?}"))
            })?;
            let event = event.map_err(CliError::failed)?;
            if let Some(asked) = self.asked.remove(&event.data.request_id) {
                self.heard(&event, asked.elapsed())?;
            }
        }
        Ok(())
    }

    fn heard(&mut self, event: &Received, took: Duration) -> Result<(), CliError> {
        let (READY, Some(url)) = (event.kind.as_str(), &event.data.url) else {
            let why = event.data.reason.as_ref().map_or("no reason is given", |r| &r.message);
            return Err(CliError::Failed(format!("a request failed: {why}")));
        };
        let reused = event.data.reused == Some(true);
        let now = time::OffsetDateTime::now_utc();
        say(format_args!(
            "{:02}:{:02}:{:02}.{:03}  {:<7}  {:<6}  {:>5} ms  {}",
            now.hour(),
            now.minute(),
            now.second(),
            now.millisecond(),
            "ready",
            if reused { "reused" } else { "new" },
            took.as_millis(),
            event.data.user_id.as_deref().unwrap_or_default(),
        ))?;
        self.took.push(took);
        self.new += usize::from(!reused);
        self.links.push(url.clone());
        Ok(())
    }
}

/// Opens a link the way a person would: the page it leads to, and the page its button leads to.
async fn open(http: &reqwest::Client, link: &str) -> Result<(), CliError> {
    let failed = |what: &str| CliError::Failed(format!("a link did not open: {what}"));
    let inner = Url::parse(link)
        .ok()
        .and_then(|link| {
            link.query_pairs().find(|(key, _)| key == "url").map(|(_, url)| url.into_owned())
        })
        .ok_or_else(|| failed("it holds no inner link"))?;
    for (page, url) in [("/capture", link), ("/mobile", inner.as_str())] {
        let response = http.get(url).timeout(PATIENCE).send().await;
        let status = response.map_err(|error| failed(&error.without_url().to_string()))?.status();
        if !status.is_success() {
            return Err(failed(&format!(
                "the page {page} answered with status {}",
                status.as_u16()
            )));
        }
    }
    Ok(())
}

fn what_next(broker: &BrokerSettings, sandbox: &Sandbox, probes: &str) -> String {
    let amqp = broker.url.expose_secret();
    // The stock password is nobody's secret; any other is not shown.
    let amqp = if amqp.contains("//guest:guest@") { amqp } else { "…" };
    let sandbox = sandbox.url();
    let handoff = std::env::args().next().unwrap_or_else(|| "handoff".to_owned());
    format!(
        "\nAll of it runs on until Ctrl-C. In another terminal, try:\n\n  \
         export HANDOFF_AMQP_URL={amqp}\n  \
         {handoff} request --user dora --qr\n  \
         {handoff} request --user dora --renew\n  \
         curl {probes}/metrics\n  \
         curl {probes}/readyz\n  \
         curl {sandbox}/sandbox/stats\n  \
         curl -X PUT {sandbox}/sandbox/faults -d '{{\"session\": {{\"status\": 503, \"times\": 3}}}}'\n  \
         {handoff} request --user eve\n\n\
         What else the simulated platform can do is on its page, {sandbox}\n"
    )
}
