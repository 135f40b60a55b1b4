//! Counts the instructions of a request, with each subject under callgrind.
//!
//! Unlike seconds, they hardly depend on the machine and its load. What the kernel does is not counted.

use std::{
    fs::{self, create_dir_all},
    path::Path,
    time::Duration,
};

use crate::{Result, load::EventTimes, scenarios::Harness, subject::Subject};

/// Requests in flight. More than a few time out at Redis, because callgrind is 50 times slower.
const CONCURRENCY: usize = 8;
const WARM_UP: usize = 40;
const REQUESTS: usize = 400;

/// Prints the count of each subject for requests one at a time, and for several in flight.
pub(crate) async fn run(harness: &mut Harness, subjects: &[Subject], folder: &Path) -> Result<()> {
    create_dir_all(folder)?;
    harness.sandbox.set_latency(Duration::ZERO).await?;
    for subject in subjects {
        for concurrency in [1, CONCURRENCY] {
            let name: String = subject.name.chars().filter(|char| char.is_alphanumeric()).collect();
            let profile = folder.join(format!("{name}-{concurrency}.callgrind"));
            harness.callgrind = Some(profile.clone());
            let worker = harness.start(subject, concurrency)?;
            send(harness, WARM_UP, concurrency).await?;
            worker.count_instructions(true).await?;
            send(harness, REQUESTS, concurrency).await?;
            worker.count_instructions(false).await?;
            harness.stop(subject, [worker]).await?;
            let count = total(&fs::read_to_string(profile)?)? / REQUESTS as u64;
            println!("{}, {concurrency} in flight: {count} instructions per request", subject.name);
        }
    }
    harness.callgrind = None;
    Ok(())
}

/// Sends requests, and waits for their events; one at a time, or all at once.
async fn send(harness: &mut Harness, requests: usize, concurrency: usize) -> Result<()> {
    harness.runs += 1;
    let run = harness.runs;
    let at_once = if concurrency == 1 { 1 } else { requests };
    for first in (0..requests).step_by(at_once) {
        let name = |number| {
            let number = first + number;
            (format!("i-{run}-{number}"), format!("user-{run}-{number}"))
        };
        harness.load.requests.publish_all(at_once, name).await?;
        harness.load.events.receive(&mut EventTimes::new(), at_once).await?;
    }
    Ok(())
}

/// The total in a profile.
fn total(profile: &str) -> Result<u64> {
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.ok_or("the profile has no total")?.trim().parse()?)
}
