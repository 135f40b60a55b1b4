//! `handoff demo`: shows requests, their events and their links, from start to end.

mod show;

use clap::{Args, ValueEnum};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::show::{JITTER, LATENCY, Show};
use super::{errors::CliError, logging, output::print_line, signals};
use crate::{
    client::Client,
    config::{BrokerSettings, DEMO_LOG, DEMO_WORKFLOW, DemoFlags, RunFlags, Settings, table},
    health,
    sandbox::{Options, Sandbox},
    worker,
};

/// Runs a worker and a simulated platform, and shows a few requests
///
/// Uses the RabbitMQ and Redis that it is given. It publishes a few requests, prints each event, opens
/// each link, and finishes one person's verification, whose next request then gets a new link. The exit
/// status is 0 only if every event arrived and every link opened. The queues must not be in use.
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
    let probes = format!("http://{probes}");
    let showing = Show::new(&mut client, sandbox, &probes)?.run();
    let shown = interrupted.run_until_cancelled(showing).await;
    let mut shown = shown.unwrap_or_else(|| Err(CliError::Failed("interrupted".to_owned())));
    if shown.is_ok() && serve {
        shown = print_line(next_steps(&broker, sandbox, &probes));
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

/// Connects. Refuses queues in use: a real request must not reach the simulated platform, and the demo's worker
/// would take real endings without the links that they are for.
async fn connect(broker: &BrokerSettings) -> Result<Client, CliError> {
    // The demo often runs on a machine without RabbitMQ.
    let client = Client::connect(broker).await.map_err(|error| {
        CliError::Failed(format!(
            "{error}\nThe demo needs RabbitMQ and Redis: `make demo` starts both, or set \
             HANDOFF_AMQP_URL and HANDOFF_REDIS_URL to yours."
        ))
    })?;
    let free = check_unused(&client).await;
    match free {
        Ok(()) => Ok(client),
        Err(error) => {
            client.close().await;
            Err(error)
        }
    }
}

async fn check_unused(client: &Client) -> Result<(), CliError> {
    let queues = client.ensure_all_queues().await.map_err(CliError::failed)?;
    match queues.iter().find(|(_, counts)| counts.consumers > 0 || counts.messages > 0) {
        None => Ok(()),
        Some((queue, counts)) => Err(CliError::Failed(format!(
            "the queue `{queue}` is in use ({} consumers, {} messages): set HANDOFF_AMQP_URL to another \
             RabbitMQ or virtual host",
            counts.consumers, counts.messages
        ))),
    }
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
