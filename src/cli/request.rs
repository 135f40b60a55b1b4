//! `handoff request`: publishes requests and waits for their events.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{
    errors::CliError,
    logging,
    output::{note, object, print_json, progress_bar, qr_code},
};
use crate::{
    client::{Client, ReceivedEvent, Requester},
    config::{BrokerFlags, BrokerSettings, parse_duration},
    message::{Decoded, READY, decode_request},
    printable::escape,
};

/// Publishes requests and waits for their events
///
/// Prints each event on stdout, one JSON object a line. The exit status is 1 if a request fails, or an
/// event does not arrive in time.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff request --user ann --workflow onboarding --metadata plan=gold --qr\n  \
    handoff request --file requests.jsonl --wait 2m > events.jsonl")]
pub(super) struct RequestArgs {
    /// The user to verify
    #[arg(long, value_name = "ID", required_unless_present = "file")]
    user: Option<String>,
    /// The workflow [default: the worker's]
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    workflow: Option<String>,
    /// Metadata for the platform; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "file")]
    metadata: Vec<(String, String)>,
    /// Language of the pages
    #[arg(long, value_name = "TAG", conflicts_with = "file")]
    locale: Option<String>,
    /// Create a new session even if a live link exists
    #[arg(long, conflicts_with = "file")]
    renew: bool,
    /// File of requests: one data object a line, such as {"userId":"ann"}
    #[arg(long, value_name = "PATH", conflicts_with = "user")]
    file: Option<PathBuf>,
    /// Give up when no event has arrived for this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Print each link as a QR code, on stderr: for a browser, or for apps with the platform's SDK
    #[arg(long, value_name = "LINK", num_args = 0..=1, require_equals = true, default_missing_value = "url")]
    qr: Option<QrLink>,
    #[command(flatten)]
    settings: BrokerFlags,
}

/// The link that a QR code shows.
#[derive(Clone, Copy, ValueEnum)]
enum QrLink {
    /// The event's url, for browsers and cameras
    Url,
    /// The event's mobileUrl, for apps with the platform's SDK
    Mobile,
}

pub(super) async fn run(args: RequestArgs) -> Result<(), CliError> {
    let (config, log) = BrokerSettings::parse(&args.settings)?;
    let bodies = match &args.file {
        Some(path) => bodies_in_file(path)?,
        None => vec![body_of_flags(&args)?],
    };
    logging::init(&log);
    let mut client = Client::connect(&config).await.map_err(CliError::not_connected)?;
    let result = publish_and_wait(&mut client, bodies, &args).await;
    client.close().await;
    result
}

fn body_of_flags(args: &RequestArgs) -> Result<Vec<u8>, CliError> {
    let metadata: Map<_, _> =
        args.metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    if metadata.len() < args.metadata.len() {
        return Err(CliError::Usage("--metadata: the same key is given twice".to_owned()));
    }
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let data = object([
        ("userId", text(&args.user)),
        ("workflowId", text(&args.workflow)),
        ("metadata", (!metadata.is_empty()).then(|| metadata.into())),
        ("locale", text(&args.locale)),
        ("renew", args.renew.then(|| true.into())),
    ]);
    let body = data.to_string().into_bytes();
    validate(&body).map_err(CliError::Usage)?;
    Ok(body)
}

fn bodies_in_file(path: &Path) -> Result<Vec<Vec<u8>>, CliError> {
    let text = std::fs::read(path)
        .map_err(|error| CliError::Usage(format!("cannot read --file: {error}")))?;
    let text = String::from_utf8(text).map_err(|_| {
        let message = "--file is not in UTF-8: save it as UTF-8 (PowerShell 5 writes UTF-16)";
        CliError::Usage(message.to_owned())
    })?;
    // Windows' editors write a byte order mark.
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).lines();
    let mut bodies = Vec::new();
    for (number, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        validate(line.as_bytes())
            .map_err(|why| CliError::Usage(format!("line {} of --file: {why}", number + 1)))?;
        bodies.push(line.as_bytes().to_vec());
    }
    if bodies.is_empty() {
        return Err(CliError::Usage("--file contains no request".to_owned()));
    }
    Ok(bodies)
}

/// Validates a body before it is published, so that no mistake ends in the dead queue.
fn validate(body: &[u8]) -> Result<(), String> {
    // Only the worker knows whether it has a default workflow, so this assumes one.
    let Decoded { id, request, .. } = decode_request(body, usize::MAX, Some("default"));
    match (id, request) {
        (Some(_), _) => Err("is a CloudEvent; give only its data object".to_owned()),
        (None, request) => request.map(drop).map_err(|invalid| invalid.message),
    }
}

/// Publishes all requests, and prints events until each request has one.
async fn publish_and_wait(
    client: &mut Client,
    bodies: Vec<Vec<u8>>,
    args: &RequestArgs,
) -> Result<(), CliError> {
    let total = bodies.len();
    let requests: Vec<(String, Vec<u8>)> =
        bodies.into_iter().map(|body| (Uuid::new_v4().to_string(), body)).collect();
    let mut waiting: HashSet<_> = requests.iter().map(|(id, _)| id.clone()).collect();

    let progress = if args.file.is_some() {
        progress_bar(total as u64, "{bar:30} {pos}/{len} events, {elapsed} elapsed, {eta} left")
    } else {
        ProgressBar::hidden()
    };
    let mut failed = 0;
    let mut not_printed = None;
    let mut publishing = std::pin::pin!(publish(client.requester.clone(), requests).fuse());
    // Only events of these requests extend the wait.
    let mut give_up = Instant::now() + args.wait;
    while !waiting.is_empty() {
        let event = tokio::select! {
            published = &mut publishing => {
                published?;
                give_up = Instant::now() + args.wait;
                continue;
            }
            event = timeout_at(give_up, client.next_event()) => event,
        };
        let Ok(event) = event else {
            progress.abandon();
            return Err(CliError::Failed(format!(
                "no event for {} of {total} requests within --wait: check that a worker is running and the \
                 platform is up",
                waiting.len()
            )));
        };
        let event = event.map_err(CliError::failed)?;
        if waiting.remove(&event.data.request_id) {
            give_up = Instant::now() + args.wait;
            failed += usize::from(event.kind != READY);
            // The other requests must be published all the same, and their events awaited.
            if not_printed.is_none() {
                not_printed = progress.suspend(|| print_event(&event, args.qr)).err();
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    if let Some(error @ CliError::Failed(_)) = not_printed {
        return Err(error);
    }
    match failed {
        0 => Ok(()),
        1 if total == 1 => Err(CliError::Failed("the request failed: see its event".to_owned())),
        _ => {
            let message = format!("{failed} of {total} requests failed: see their events");
            Err(CliError::Failed(message))
        }
    }
}

async fn publish(requester: Requester, requests: Vec<(String, Vec<u8>)>) -> Result<(), CliError> {
    let requester = &requester;
    let publish = async move |(id, body): (String, Vec<u8>)| requester.publish(&id, &body).await;
    let published = stream::iter(requests).map(Ok).try_for_each_concurrent(64, publish).await;
    published.map_err(|error| CliError::Failed(format!("cannot publish a request: {error}")))
}

fn print_event(event: &ReceivedEvent, qr: Option<QrLink>) -> Result<(), CliError> {
    print_json(&event.json)?;
    let link = match qr {
        Some(QrLink::Url) => event.data.url.as_ref(),
        Some(QrLink::Mobile) => event.data.mobile_url.as_ref(),
        None => None,
    };
    if let Some(link) = link {
        note(format_args!("{}\n{}", qr_code(link), escape(link)));
    }
    Ok(())
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE"),
    }
}
