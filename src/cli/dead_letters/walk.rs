//! One walk through the dead queue.

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use indicatif::ProgressBar;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    filter::Filter,
    view::{Layout, Row, message_json, table},
};
use crate::{
    broker::{DeadLetter, DeadQueue},
    cli::{errors::CliError, output::print_line, progress::bar},
};

/// Whether to ask before letters are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmation {
    Ask,
    Given,
}

/// Takes each dead letter from the queue once.
pub(super) struct Walk<'a> {
    queue: DeadQueue,
    filter: &'a Filter,
    interrupted: CancellationToken,
    /// Request ids of the filter that were not found yet.
    missing: Vec<String>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        queue: DeadQueue,
        filter: &'a Filter,
        interrupted: CancellationToken,
    ) -> Self {
        Self { queue, filter, interrupted, missing: filter.request_ids.clone() }
    }

    /// Returns unsettled letters to the queue. Returns the request ids that were not found.
    pub(super) async fn close(self) -> Vec<String> {
        self.queue.close().await;
        self.missing
    }

    /// The next letter that matches. Keeps the others in the queue.
    async fn next(&mut self) -> Result<Option<DeadLetter>, CliError> {
        loop {
            if self.interrupted.is_cancelled() {
                return Err(CliError::Failed("interrupted".to_owned()));
            }
            let next = self.queue.next().await.map_err(CliError::failed)?;
            let Some(letter) = next else { return Ok(None) };
            let id = letter.request_id();
            if self.filter.matches(&letter, id.as_deref()) {
                self.missing.retain(|missing| Some(missing) != id.as_ref());
                return Ok(Some(letter));
            }
            self.keep(&letter).await?;
        }
    }

    async fn keep(&self, letter: &DeadLetter) -> Result<(), CliError> {
        self.queue.keep(letter).await.map_err(CliError::failed)
    }

    pub(super) async fn list(&mut self) -> Result<(), CliError> {
        let is_terminal = stdout().is_terminal();
        let mut rows = Vec::new();
        while let Some(letter) = self.next().await? {
            let row = Row::new(&letter);
            if is_terminal {
                rows.push(row);
            } else {
                print_line(row.json()?)?;
            }
            self.keep(&letter).await?;
        }
        if !is_terminal {
            return Ok(());
        }
        if rows.is_empty() {
            eprintln!("no dead letters");
            return Ok(());
        }
        print_line(table(&rows))
    }

    pub(super) async fn show(&mut self) -> Result<(), CliError> {
        let layout = if stdout().is_terminal() { Layout::Pretty } else { Layout::Line };
        while let Some(letter) = self.next().await? {
            print_line(message_json(&letter, layout)?)?;
            self.keep(&letter).await?;
        }
        Ok(())
    }

    /// Publishes letters to the request queue, at most one in each interval.
    pub(super) async fn replay(&mut self, min_interval: Option<Duration>) -> Result<(), CliError> {
        let bar = progress(self.queue.remaining, "sent");
        let mut sent = 0;
        let result = self.replay_all(min_interval, &bar, &mut sent).await;
        bar.finish_and_clear();
        report(result, sent, "sent to the request queue")
    }

    async fn replay_all(
        &mut self,
        min_interval: Option<Duration>,
        bar: &ProgressBar,
        sent: &mut u64,
    ) -> Result<(), CliError> {
        let mut ticks = min_interval.map(ticks);
        while let Some(letter) = self.next().await? {
            if let Some(ticks) = &mut ticks {
                tokio::select! {
                    _ = ticks.tick() => {}
                    // `next` reports the interruption. The letter returns to the queue.
                    () = self.interrupted.cancelled() => continue,
                }
            }
            self.queue.replay(&letter).await.map_err(CliError::failed)?;
            *sent += 1;
            bar.set_position(*sent);
        }
        Ok(())
    }

    /// Deletes letters, after a confirmation where one is needed and stdin is a terminal.
    pub(super) async fn drop_letters(
        &mut self,
        confirmation: Confirmation,
    ) -> Result<(), CliError> {
        let mut letters = Vec::new();
        while let Some(mut letter) = self.next().await? {
            letter.delivery.drop_body();
            letters.push(letter);
        }
        let must_ask = confirmation == Confirmation::Ask && stdin().is_terminal();
        if !letters.is_empty() && must_ask && !is_confirmed(letters.len()).await? {
            return Err(CliError::Failed("nothing was dropped".to_owned()));
        }
        let bar = progress(self.queue.remaining, "dropped");
        let mut dropped = 0;
        let result = self.drop_all(&letters, &bar, &mut dropped).await;
        bar.finish_and_clear();
        report(result, dropped, "dropped")
    }

    async fn drop_all(
        &self,
        letters: &[DeadLetter],
        bar: &ProgressBar,
        dropped: &mut u64,
    ) -> Result<(), CliError> {
        for letter in letters {
            self.queue.discard(letter).await.map_err(CliError::failed)?;
            *dropped += 1;
            bar.set_position(*dropped);
        }
        Ok(())
    }
}

/// Reports how many letters an action settled, whether it succeeded or not.
fn report(result: Result<(), CliError>, count: u64, what: &str) -> Result<(), CliError> {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    match result {
        Ok(()) => {
            eprintln!("{count} {letters} {what}");
            Ok(())
        }
        Err(error) => Err(CliError::Failed(format!(
            "{error}; {count} {letters} {what}, the others are still in the dead queue"
        ))),
    }
}

/// Asks on the terminal. Does not block: the connection's heartbeats continue.
async fn is_confirmed(count: usize) -> Result<bool, CliError> {
    eprint!("Drop {count} for good? This cannot be undone. [y/N] ");
    stderr().flush().map_err(CliError::failed)?;
    let mut answer = String::new();
    let mut lines = BufReader::new(tokio::io::stdin());
    lines.read_line(&mut answer).await.map_err(CliError::failed)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn ticks(min_interval: Duration) -> Interval {
    let mut ticks = interval(min_interval);
    // Does not exceed the rate to make up for lost time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn progress(total: u32, what: &str) -> ProgressBar {
    bar(total.into(), &format!("{{bar:30}} {{pos}} {what}, {{elapsed}} elapsed"))
}
