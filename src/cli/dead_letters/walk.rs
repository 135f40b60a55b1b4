//! One walk through the dead queue.

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use indicatif::ProgressBar;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    filter::Filter,
    view::{Row, Whole, table},
};
use crate::{
    broker::{DeadLetter, DeadQueue, MAX_HOLD},
    cli::{
        errors::CliError,
        output::{note, print_json, print_line, progress_bar},
    },
};

/// Takes each dead letter from the queue once.
pub(super) struct Walk<'a> {
    queue: DeadQueue,
    filter: &'a Filter,
    interrupted: &'a CancellationToken,
    /// Request ids of the filter that were not found yet.
    missing: Vec<String>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        queue: DeadQueue,
        filter: &'a Filter,
        interrupted: &'a CancellationToken,
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
        self.next_and(Others::Keep).await
    }

    async fn next_and(&mut self, others: Others) -> Result<Option<DeadLetter>, CliError> {
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
            match others {
                Others::Keep => self.keep(&letter).await?,
                Others::Hold => self.queue.hold(letter).await.map_err(CliError::failed)?,
            }
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
            // Before it is printed, which fails if the reader has gone.
            self.keep(&letter).await?;
            if is_terminal {
                rows.push(row);
            } else {
                print_line(row.json()?)?;
            }
        }
        match (is_terminal, rows.is_empty()) {
            (true, true) => note("no dead letters"),
            (true, false) => print_line(table(&rows))?,
            (false, _) => {}
        }
        Ok(())
    }

    pub(super) async fn show(&mut self) -> Result<(), CliError> {
        let is_terminal = stdout().is_terminal();
        while let Some(letter) = self.next().await? {
            let json = Whole::new(&letter).json(is_terminal)?;
            self.keep(&letter).await?;
            print_json(&json)?;
        }
        Ok(())
    }

    /// Publishes letters to the request queue, at most one in each interval.
    pub(super) async fn replay(&mut self, min_interval: Option<Duration>) -> Result<(), CliError> {
        let mut ticks = min_interval.map(ticks);
        // No letter is held over a long interval: each is received when it is due. Where to stop is
        // counted before.
        let is_sparse = min_interval.is_some_and(|interval| interval > MAX_HOLD);
        let total = if is_sparse { self.count().await? } else { self.queue.remaining.into() };
        counted(total, "sent", " to the request queue", async |sent| {
            while sent.position() < total {
                if let Some(ticks) = &mut ticks
                    && is_sparse
                {
                    self.wait(ticks).await?;
                }
                let Some(letter) = self.next_and(Others::Hold).await? else { break };
                if let Some(ticks) = &mut ticks
                    && !is_sparse
                    && self.wait(ticks).await? == Waited::Interrupted
                {
                    // `next_and` reports the interruption.
                    self.keep(&letter).await?;
                    continue;
                }
                self.queue.replay(&letter).await.map_err(CliError::failed)?;
                sent.inc(1);
            }
            Ok(())
        })
        .await
    }

    /// Counts the letters that match, and starts over.
    async fn count(&mut self) -> Result<u64, CliError> {
        let mut count = 0;
        while let Some(letter) = self.next_and(Others::Hold).await? {
            count += 1;
            self.queue.hold(letter).await.map_err(CliError::failed)?;
        }
        self.queue.rewind();
        Ok(count)
    }

    /// Waits for the next tick. Meanwhile moves letters that were held for long.
    async fn wait(&mut self, ticks: &mut Interval) -> Result<Waited, CliError> {
        loop {
            let held_until = self.queue.held_until();
            tokio::select! {
                () = self.interrupted.cancelled() => return Ok(Waited::Interrupted),
                _ = ticks.tick() => return Ok(Waited::Due),
                () = at(held_until) => self.queue.move_held().await.map_err(CliError::failed)?,
            }
        }
    }

    /// Deletes letters. Unless the user has confirmed it already, asks first if stdin is a terminal.
    pub(super) async fn drop_letters(&mut self, is_confirmed: bool) -> Result<(), CliError> {
        let mut letters = Vec::new();
        while let Some(mut letter) = self.next().await? {
            letter.delivery.drop_body();
            letters.push(letter);
        }
        let must_ask = !letters.is_empty() && !is_confirmed && stdin().is_terminal();
        if must_ask && !confirm(letters.len()).await? {
            return Err(CliError::Failed("nothing was dropped".to_owned()));
        }
        counted(letters.len() as u64, "dropped", "", async |dropped| {
            for letter in &letters {
                self.queue.discard(letter).await.map_err(CliError::failed)?;
                dropped.inc(1);
            }
            Ok(())
        })
        .await
    }
}

/// What becomes of letters that do not match.
#[derive(Clone, Copy)]
enum Others {
    /// They stay unsettled until the end.
    Keep,
    /// They stay unsettled for a while, and then move to the end of the queue.
    Hold,
}

/// Why a wait for the next tick ended.
#[derive(PartialEq, Eq)]
enum Waited {
    Due,
    Interrupted,
}

/// Completes at a time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Runs an action with a progress bar, and reports how many letters it settled, whether it succeeded
/// or not.
async fn counted(
    total: u64,
    settled: &str,
    whereto: &str,
    action: impl AsyncFnOnce(&ProgressBar) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let bar = progress_bar(total, &format!("{{bar:30}} {{pos}} {settled}, {{elapsed}} elapsed"));
    let result = action(&bar).await;
    let count = bar.position();
    bar.finish_and_clear();
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    let report = format!("{count} {letters} {settled}{whereto}");
    match result {
        Ok(()) => {
            note(report);
            Ok(())
        }
        Err(error) => Err(CliError::Failed(format!(
            "{error}; {report}, the others are still in the dead queue"
        ))),
    }
}

/// Asks on the terminal. Does not block: the connection's heartbeats continue.
async fn confirm(count: usize) -> Result<bool, CliError> {
    let question = format!("Drop {count} for good? This cannot be undone. [y/N] ");
    stderr().write_all(question.as_bytes()).map_err(|error| {
        CliError::Failed(format!("cannot ask on stderr: {error}; nothing was dropped"))
    })?;
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
