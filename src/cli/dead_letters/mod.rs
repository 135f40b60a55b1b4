//! `handoff dead-letters`: look through the dead queue, send requests back, drop what nobody wants.

mod pick;
mod view;

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::{
    pick::{Choice, Chosen, pace},
    view::{Row, json_of_message, table},
};
use super::{CliError, hints, progress::bar, say, signals};
use crate::{
    broker::{DeadLetter, DeadQueue},
    config::{BrokerFlags, BrokerSettings},
    telemetry::logs,
};

/// Lists, shows, replays or drops requests that could not be served
///
/// Works while workers run, and loses nothing when it is interrupted: a dead letter leaves its queue
/// only once RabbitMQ has confirmed what becomes of it.
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
    /// List them: a table on a terminal, else a JSON object a line
    #[command(after_help = "Example:\n  handoff dead-letters list --older-than 1h")]
    List(ListArgs),
    /// Show them whole, with the request that they were; that holds personal data
    #[command(after_help = "Example:\n  handoff dead-letters show order-7781")]
    Show(ListArgs),
    /// Send them to the request queue again, as if they had never been tried
    #[command(after_help = "Examples:\n  \
        handoff dead-letters replay order-7781\n  \
        handoff dead-letters replay --reason platform_rejected --rate 10/s")]
    Replay(ReplayArgs),
    /// Drop them for good; asks first on a terminal
    #[command(after_help = "Example:\n  handoff dead-letters drop --older-than 720h --dry-run")]
    Drop(DropArgs),
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    settings: BrokerFlags,
}

#[derive(Args)]
struct ReplayArgs {
    #[command(flatten)]
    choice: Choice,
    /// Only list what would be sent
    #[arg(long)]
    dry_run: bool,
    /// At most so many in a time, such as 10/s or 1000/1m
    #[arg(long, value_name = "N/DURATION", value_parser = pace)]
    rate: Option<Duration>,
    #[command(flatten)]
    settings: BrokerFlags,
}

#[derive(Args)]
struct DropArgs {
    #[command(flatten)]
    choice: Choice,
    /// Only list what would be dropped
    #[arg(long)]
    dry_run: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    settings: BrokerFlags,
}

pub(super) async fn run(args: DeadLettersArgs) -> Result<(), CliError> {
    let (settings, chosen) = match &args.action {
        Action::List(args) | Action::Show(args) => (&args.settings, &args.chosen),
        Action::Replay(args) => (&args.settings, &args.choice.chosen),
        Action::Drop(args) => (&args.settings, &args.choice.chosen),
    };
    let (config, log) = BrokerSettings::parse(settings)?;
    logs::init(&log);
    let signals = signals::listen().map_err(CliError::failed)?;
    let interrupted = signals.shutdown.clone();
    signals.obey(go(&args.action, &config, chosen, interrupted)).await
}

async fn go(
    action: &Action,
    config: &BrokerSettings,
    chosen: &Chosen,
    interrupted: CancellationToken,
) -> Result<(), CliError> {
    let queue = DeadQueue::open(config).await.map_err(hints::broker)?;
    let mut pass = Pass { queue, chosen, interrupted, missing: chosen.ids() };
    let done = match action {
        Action::List(_) => pass.list().await,
        Action::Show(_) => pass.show().await,
        Action::Replay(ReplayArgs { dry_run: true, .. })
        | Action::Drop(DropArgs { dry_run: true, .. }) => pass.list().await,
        Action::Replay(args) => pass.replay(args.rate).await,
        Action::Drop(args) => pass.discard(args.yes).await,
    };
    // Whatever happened, what is held goes back.
    let Pass { queue, missing, .. } = pass;
    queue.close().await;
    done?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(CliError::Failed(format!("not in the dead queue: {}", missing.join(", ")))),
    }
}

/// One way through the dead queue.
struct Pass<'a> {
    queue: DeadQueue,
    chosen: &'a Chosen,
    interrupted: CancellationToken,
    /// Ids that were asked for and have not come by.
    missing: Vec<String>,
}

impl Pass<'_> {
    /// The next one that is chosen. The others stay as they are.
    async fn next(&mut self) -> Result<Option<DeadLetter>, CliError> {
        loop {
            if self.interrupted.is_cancelled() {
                return Err(CliError::Failed("interrupted".to_owned()));
            }
            let next = self.queue.next().await.map_err(CliError::failed)?;
            let Some(letter) = next else { return Ok(None) };
            let id = letter.request_id();
            if self.chosen.has(&letter, id.as_deref()) {
                self.missing.retain(|missing| Some(missing) != id.as_ref());
                return Ok(Some(letter));
            }
            self.keep(&letter).await?;
        }
    }

    async fn keep(&self, letter: &DeadLetter) -> Result<(), CliError> {
        self.queue.keep(letter).await.map_err(CliError::failed)
    }

    async fn list(&mut self) -> Result<(), CliError> {
        let on_terminal = stdout().is_terminal();
        let mut rows = Vec::new();
        while let Some(letter) = self.next().await? {
            let row = Row::of(&letter);
            match on_terminal {
                true => rows.push(row),
                false => say(row.json()?)?,
            }
            self.keep(&letter).await?;
        }
        match on_terminal {
            true if rows.is_empty() => eprintln!("no dead letters"),
            true => say(table(&rows))?,
            false => {}
        }
        Ok(())
    }

    async fn show(&mut self) -> Result<(), CliError> {
        while let Some(letter) = self.next().await? {
            say(json_of_message(&letter, stdout().is_terminal())?)?;
            self.keep(&letter).await?;
        }
        Ok(())
    }

    async fn replay(&mut self, every: Option<Duration>) -> Result<(), CliError> {
        let mut pace = every.map(paced);
        let (bar, mut sent) = (progress(self.queue.remaining(), "sent"), 0_u64);
        let ended = loop {
            let letter = match self.next().await {
                Ok(Some(letter)) => letter,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            if let Some(pace) = &mut pace {
                tokio::select! {
                    _ = pace.tick() => {}
                    () = self.interrupted.cancelled() => continue,
                }
            }
            if let Err(error) = self.queue.replay(&letter).await {
                break Err(CliError::failed(error));
            }
            sent += 1;
            bar.set_position(sent);
        };
        bar.finish_and_clear();
        told(ended, sent, "sent to the request queue")
    }

    async fn discard(&mut self, yes: bool) -> Result<(), CliError> {
        let mut letters = Vec::new();
        while let Some(letter) = self.next().await? {
            letters.push(letter.without_body());
        }
        if letters.is_empty() {
            return told(Ok(()), 0, "dropped");
        }
        if !yes && stdin().is_terminal() && !confirmed(letters.len()).await? {
            return Err(CliError::Failed("nothing was dropped".to_owned()));
        }
        let (bar, mut dropped) = (progress(self.queue.remaining(), "dropped"), 0_u64);
        let mut ended = Ok(());
        for letter in letters {
            if let Err(error) = self.queue.discard(&letter).await {
                ended = Err(CliError::failed(error));
                break;
            }
            dropped += 1;
            bar.set_position(dropped);
        }
        bar.finish_and_clear();
        told(ended, dropped, "dropped")
    }
}

/// Says how many it was, whatever the end.
fn told(ended: Result<(), CliError>, count: u64, what: &str) -> Result<(), CliError> {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    match ended {
        Ok(()) => {
            eprintln!("{count} {letters} {what}");
            Ok(())
        }
        Err(error) => Err(CliError::Failed(format!(
            "{error}; {count} {letters} {what}, the rest is still in the dead queue"
        ))),
    }
}

/// Asks, without keeping the connection's sign of life from being given.
async fn confirmed(count: usize) -> Result<bool, CliError> {
    eprint!("Drop {count} for good? There is no way back. [y/N] ");
    stderr().flush().map_err(CliError::failed)?;
    let mut answer = String::new();
    let mut lines = BufReader::new(tokio::io::stdin());
    lines.read_line(&mut answer).await.map_err(CliError::failed)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn paced(every: Duration) -> Interval {
    let mut pace = interval(every);
    // Time that was lost is not made up for.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

fn progress(most: u32, what: &str) -> ProgressBar {
    bar(most.into(), &format!("{{bar:30}} {{pos}} {what}, {{elapsed}} gone"))
}
