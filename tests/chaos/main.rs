//! `make chaos`: a seeded campaign against three workers, and a table of what it cost.
//!
//! Apart from the tests, since it takes minutes. Its RabbitMQ and Redis are its own.

#![allow(unreachable_pub, reason = "everything in here is this binary's own")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how it fails")]

mod book;
mod crowd;
mod fleet;
mod harm;
mod plan;
mod platform;
mod report;
mod stage;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod support;
mod verdict;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;

use self::{crowd::Crowd, plan::Plan, report::Report, stage::Stage};

/// Longest time from the end of all faults to the last event: some requests are in the last retry queue.
const CALM: Duration = Duration::from_secs(180);

/// Breaks workers, RabbitMQ, Redis, the network and the platform for some minutes, and counts
///
/// The exit status is 1 if a request has no event, or a session has no fault that explains it.
#[derive(Parser)]
#[command(name = "make chaos")]
struct Args {
    /// The plan is drawn from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long things break
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// The platform heeds Idempotency-Key
    #[arg(long)]
    idempotency: bool,
    /// Tell the reason of each session beyond a person's first, of each failure and of the longest wait
    #[arg(long)]
    verbose: bool,
    /// Only show the plan
    #[arg(long)]
    plan: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let length = Duration::from_secs(60 * args.minutes);
    let plan = Plan::draw(args.seed, length);
    if args.plan {
        for step in plan.steps {
            println!("{:7.1} s  {}", step.at.as_secs_f64(), step.harm);
        }
        return ExitCode::SUCCESS;
    }

    let stage = Arc::new(Stage::set(args.idempotency).await);
    let crowd = Crowd::new(&stage.rabbitmq.url);
    let hearing = tokio::spawn(Arc::clone(&crowd).hear());
    stage.say(&format!("seed {}, {} requests", args.seed, plan.asks.len()));
    let harm = plan.counts();
    tokio::join!(crowd.ask(plan.asks), stage.play(plan.steps));
    crowd.all_answered(CALM).await;
    let ends = stage.fleet.stop().await;
    stage.say("the workers have stopped");
    // What they told last.
    tokio::time::sleep(Duration::from_secs(1)).await;
    hearing.abort();

    let report = Report::of(&stage, &crowd, &ends, &harm).await;
    if args.verbose {
        println!("\n{}", report.notes);
    }
    println!("\n{report}");
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
