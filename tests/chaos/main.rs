//! `make chaos`: a seeded campaign of faults against three workers, and a table of what it cost.
//!
//! It is not one of the tests, since it takes minutes. It starts its own RabbitMQ and Redis.

#![allow(unreachable_pub, reason = "everything in here is this binary's own")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how it fails")]

mod clients;
mod environment;
mod faults;
mod ledger;
mod plan;
mod platform;
#[path = "../clusters/rabbitmq/cluster.rs"]
#[allow(dead_code, reason = "the tests of clusters use the rest")]
mod rabbitmq_cluster;
#[path = "../clusters/redis_servers.rs"]
#[allow(dead_code, reason = "the tests of clusters use the rest")]
mod redis_servers;
mod report;
mod servers;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod support;
mod tls;
mod verdict;
mod workers;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;

use self::{
    clients::Clients, environment::Environment, plan::Plan, report::Report, servers::Topology,
};

/// How long to wait for the last event once all faults are over. Some requests are in the last
/// retry queue by then.
const EVENT_TIMEOUT: Duration = Duration::from_secs(180);

/// Breaks workers, RabbitMQ, Redis, the network and the platform for minutes, and counts the cost
///
/// The exit status is 1 if a request has no event, or no fault explains an extra session, a failed request or
/// a dead letter.
#[derive(Parser)]
#[command(name = "make chaos")]
struct Args {
    /// The seed of the plan
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to inject faults
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// Break single servers, or clusters of them
    #[arg(long, value_enum, default_value_t = Topology::Single)]
    topology: Topology,
    /// How long requests wait for Redis: HANDOFF_REDIS_PATIENCE
    #[arg(long, default_value = "10s")]
    patience: String,
    /// Have the platform honour Idempotency-Key
    #[arg(long)]
    idempotency: bool,
    /// Explain each extra session and the longest wait
    #[arg(long)]
    verbose: bool,
    /// Print the plan and exit
    #[arg(long)]
    plan: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let length = Duration::from_secs(60 * args.minutes);
    let plan = Plan::draw(args.seed, length);
    if args.plan {
        for planned in plan.faults {
            println!("{:7.1} s  {}", planned.at.as_secs_f64(), planned.fault);
        }
        return ExitCode::SUCCESS;
    }

    let environment =
        Arc::new(Environment::start(args.topology, &args.patience, args.idempotency).await);
    let clients = Clients::new(environment.rabbitmq.urls());
    let receiver = tokio::spawn(Arc::clone(&clients).receive());
    environment.print(&format!("seed {}, {} requests", args.seed, plan.requests.len()));
    let fault_counts = plan.fault_counts();
    tokio::join!(clients.publish(plan.requests), environment.inject(plan.faults));
    clients.wait_for_events(EVENT_TIMEOUT).await;
    let exits = environment.workers.stop().await;
    environment.print("the workers have stopped");
    // Events that the workers published last may still be on their way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    receiver.abort();

    let report = Report::new(&environment, &clients, &exits, &fault_counts).await;
    if args.verbose {
        println!("\n{}", report.notes);
    }
    println!("\n{report}");
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
