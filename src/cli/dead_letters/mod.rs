//! `handoff dead-letters`: lists, shows, replays and drops dead letters.

mod filter;
mod view;
mod walk;

use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::{
    filter::{Filter, parse_interval, required_filter},
    walk::Walk,
};
use super::{errors::CliError, logging, signals};
use crate::{
    broker::DeadQueue,
    config::{BrokerFlags, BrokerSettings},
};

/// Lists, shows, replays or drops requests that failed
///
/// Safe to use while workers run, and to interrupt: a replayed dead letter leaves its queue only after
/// RabbitMQ has confirmed the copy.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff dead-letters list --reason retries_exhausted\n  \
    handoff dead-letters show order-7781\n  \
    handoff dead-letters replay --reason platform_rejected --older-than 1h --rate 10/s\n  \
    handoff dead-letters drop --older-than 720h --dry-run")]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists dead letters: a table on a terminal, else one JSON object a line
    #[command(after_help = "Example:\n  handoff dead-letters list --older-than 1h")]
    List(ListArgs),
    /// Shows dead letters with their requests, which contain personal data
    #[command(after_help = "Example:\n  handoff dead-letters show order-7781")]
    Show(ListArgs),
    /// Publishes dead letters again, to the queues that they came from, with all attempts left
    #[command(after_help = "Examples:\n  \
        handoff dead-letters replay order-7781\n  \
        handoff dead-letters replay --reason platform_rejected --rate 10/s")]
    Replay(ReplayArgs),
    /// Deletes dead letters, after confirmation on a terminal
    #[command(after_help = "Example:\n  handoff dead-letters drop --older-than 720h --dry-run")]
    Drop(DropArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    settings: BrokerFlags,
}

#[derive(Args)]
#[command(group = required_filter())]
struct ReplayArgs {
    #[command(flatten)]
    filter: Filter,
    /// Only list what would be replayed
    #[arg(long)]
    dry_run: bool,
    /// Maximum rate, such as 10/s or 1000/1m
    #[arg(long, value_name = "N/DURATION", value_parser = parse_interval)]
    rate: Option<Duration>,
    #[command(flatten)]
    settings: BrokerFlags,
}

#[derive(Args)]
#[command(group = required_filter())]
struct DropArgs {
    #[command(flatten)]
    filter: Filter,
    /// Only list what would be dropped
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    settings: BrokerFlags,
}

pub(super) async fn run(args: DeadLettersArgs) -> Result<(), CliError> {
    let (flags, filter) = match &args.action {
        Action::List(args) | Action::Show(args) => (&args.settings, &args.filter),
        Action::Replay(args) => (&args.settings, &args.filter),
        Action::Drop(args) => (&args.settings, &args.filter),
    };
    let (settings, log) = BrokerSettings::parse(flags)?;
    logging::init(&log);
    let signals = signals::listen()?;
    signals.cut_short(act(&args.action, &settings, filter, &signals.shutdown)).await?
}

async fn act(
    action: &Action,
    settings: &BrokerSettings,
    filter: &Filter,
    interrupted: &CancellationToken,
) -> Result<(), CliError> {
    let queue = DeadQueue::open(settings).await.map_err(CliError::not_connected)?;
    let mut walk = Walk::new(queue, filter, interrupted);
    let result = match action {
        Action::List(_)
        | Action::Replay(ReplayArgs { dry_run: true, .. })
        | Action::Drop(DropArgs { dry_run: true, .. }) => walk.list().await,
        Action::Show(_) => walk.show().await,
        Action::Replay(args) => walk.replay(args.rate).await,
        Action::Drop(args) => walk.drop_letters(args.yes).await,
    };
    let missing = walk.close().await;
    result?;
    if !missing.is_empty() {
        return Err(CliError::Failed(format!("not in the dead queue: {}", missing.join(", "))));
    }
    Ok(())
}
