//! `handoff request`: publish requests and wait for their events.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::{CliError, hints, progress::bar, qr, say};
use crate::{
    client::{Client, Received, Requester},
    config::{BrokerFlags, BrokerSettings, parse_duration},
    message::{Decoded, READY, decode_request},
    telemetry::logs,
};

/// Publishes requests and waits for their events
///
/// Events go to stdout, one JSON object a line. The exit status is 1 if an event says `failed` or one
/// does not come in time.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff request --user ann --workflow onboarding --metadata plan=gold --qr\n  \
    handoff request --file requests.jsonl --wait 2m > events.jsonl")]
pub(super) struct RequestArgs {
    /// Who is to be verified
    #[arg(long, value_name = "ID", required_unless_present = "file")]
    user: Option<String>,
    /// By which workflow; without it the worker's default counts
    #[arg(long, value_name = "ID", conflicts_with = "file")]
    workflow: Option<String>,
    /// Passed on to the platform; may be given again
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, conflicts_with = "file")]
    metadata: Vec<(String, String)>,
    /// Language of the pages
    #[arg(long, value_name = "TAG", conflicts_with = "file")]
    locale: Option<String>,
    /// Make a new session even if there is a live link
    #[arg(long, conflicts_with = "file")]
    renew: bool,
    /// Many requests: one data object a line, such as {"userId":"ann"}
    #[arg(long, value_name = "PATH", conflicts_with = "user")]
    file: Option<PathBuf>,
    /// Give up when none of the events has come for this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Show each link as a QR code, on stderr
    #[arg(long)]
    qr: bool,
    #[command(flatten)]
    settings: BrokerFlags,
}

/// The data object of a request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_id: Option<&'a str>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    renew: bool,
}

pub(super) async fn run(args: RequestArgs) -> Result<(), CliError> {
    let (config, log) = BrokerSettings::parse(&args.settings)?;
    let bodies = bodies(&args)?;
    logs::init(&log);
    let mut client = Client::connect(&config).await.map_err(hints::broker)?;
    let asked = ask(&mut client, bodies, &args).await;
    client.close().await;
    asked
}

/// What is to be published, checked: a slip is better found here than in the dead queue.
fn bodies(args: &RequestArgs) -> Result<Vec<Vec<u8>>, CliError> {
    let Some(path) = &args.file else {
        let mut keys = HashSet::new();
        if args.metadata.iter().any(|(key, _)| !keys.insert(key)) {
            return Err(CliError::Usage("--metadata: a key is given twice".to_owned()));
        }
        let metadata = args.metadata.iter().cloned().map(|(key, value)| (key, value.into()));
        let data = Data {
            user_id: args.user.as_deref().unwrap_or_default(),
            workflow_id: args.workflow.as_deref(),
            metadata: metadata.collect(),
            locale: args.locale.as_deref(),
            renew: args.renew,
        };
        let body = serde_json::to_vec(&data).map_err(CliError::failed)?;
        check(&body).map_err(CliError::Usage)?;
        return Ok(vec![body]);
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::Usage(format!("cannot read --file: {error}")))?;
    let mut bodies = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        check(line.as_bytes())
            .map_err(|why| CliError::Usage(format!("line {} of --file: {why}", number + 1)))?;
        bodies.push(line.as_bytes().to_vec());
    }
    match bodies.is_empty() {
        true => Err(CliError::Usage("--file holds no request".to_owned())),
        false => Ok(bodies),
    }
}

fn check(body: &[u8]) -> Result<(), String> {
    // Whether there is a default workflow, the worker knows.
    let Decoded { id, request } = decode_request(body, usize::MAX, Some("default"));
    match (id, request) {
        (Some(_), _) => Err("is a CloudEvent; give its data object alone".to_owned()),
        (None, request) => request.map(drop).map_err(|invalid| invalid.message),
    }
}

/// Publishes everything and waits for every event.
async fn ask(
    client: &mut Client,
    bodies: Vec<Vec<u8>>,
    args: &RequestArgs,
) -> Result<(), CliError> {
    let total = bodies.len();
    let mut waiting = HashSet::with_capacity(total);
    let requests: Vec<(String, Vec<u8>)> =
        bodies.into_iter().map(|body| (Uuid::new_v4().to_string(), body)).collect();
    waiting.extend(requests.iter().map(|(id, _)| id.clone()));

    let progress = progress(total, args.file.is_some());
    let mut failed = 0;
    let publishing = publish(client.requester(), requests);
    let mut publishing = std::pin::pin!(publishing);
    let mut published = false;
    // Other people's events are no progress: only ours put it off.
    let mut give_up = Instant::now() + args.wait;
    while !waiting.is_empty() {
        let event = tokio::select! {
            done = &mut publishing, if !published => {
                done?;
                published = true;
                give_up = Instant::now() + args.wait;
                continue;
            }
            event = timeout_at(give_up, client.next_event()) => event,
        };
        let Ok(event) = event else {
            progress.abandon();
            return Err(CliError::Failed(format!(
                "no event came for {} of {total} requests within the time of --wait: is a worker running, \
                 and is the platform up?",
                waiting.len()
            )));
        };
        let event = event.map_err(CliError::failed)?;
        if waiting.remove(&event.data.request_id) {
            give_up = Instant::now() + args.wait;
            failed += usize::from(event.kind != READY);
            progress.suspend(|| show(&event, args.qr))?;
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    match failed {
        0 => Ok(()),
        1 if total == 1 => {
            Err(CliError::Failed("the request failed; its event says why".to_owned()))
        }
        _ => Err(CliError::Failed(format!(
            "{failed} of {total} requests failed; their events say why"
        ))),
    }
}

async fn publish(requester: Requester, requests: Vec<(String, Vec<u8>)>) -> Result<(), CliError> {
    let publishes = stream::iter(requests).map(|(id, body)| {
        let requester = requester.clone();
        async move { requester.publish(&id, &body).await }
    });
    let mut publishes = publishes.buffer_unordered(64);
    while let Some(published) = publishes.next().await {
        published.map_err(|error| {
            CliError::Failed(format!("a request could not be published: {error}"))
        })?;
    }
    Ok(())
}

fn show(event: &Received, with_qr: bool) -> Result<(), CliError> {
    say(&event.json)?;
    if with_qr && let Some(url) = &event.data.url {
        eprintln!("{}\n{url}", qr::for_terminal(url));
    }
    Ok(())
}

/// A bar, for many requests.
fn progress(total: usize, many: bool) -> ProgressBar {
    match many {
        true => bar(total as u64, "{bar:30} {pos}/{len} events, {elapsed} gone, {eta} to go"),
        false => ProgressBar::hidden(),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    match key.is_empty() {
        true => Err("must be KEY=VALUE".to_owned()),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}
