//! `make endings`: requests and endings for the same people, in random order, against two workers, one of which is
//! killed. Checks the promise of endings, and measures how long they take.
//!
//! It is not one of the tests, since it takes minutes.

#![allow(unreachable_pub, reason = "everything in here is this binary's own")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how it fails")]

mod load;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod support;
mod verdict;
mod workers;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use handoff::sandbox::{Options, Sandbox};
use tokio::net::TcpListener;

use self::{load::Load, support::TestEnv, verdict::Verdict, workers::Workers};

/// The life of sessions. Shorter than that of tokens, so that the end of a link shows when its session was made.
const SESSION_TTL: &str = "30m";

/// Ends the session of each request's event a moment later, while the same people ask again, and checks that no ended
/// session is handed out
///
/// The exit status is 1 if an event for a request that was published after an ending was acked carries an ended
/// session, if a link is replaced that no ending concerns, or if the 99th percentile of endings exceeds 1 s.
#[derive(Parser)]
#[command(name = "make endings")]
struct Args {
    /// The seed of the order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many requests, and as many endings
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// How many people they are for
    #[arg(long, default_value_t = 1_000)]
    people: usize,
    /// Requests published in a second
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// A folder for the workers' logs
    #[arg(long)]
    logs: Option<PathBuf>,
    /// How the platform makes links
    #[arg(long, value_enum, default_value_t = Flow::Token)]
    flow: Flow,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Flow {
    Token,
    Deeplink,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = Options {
        api_key: support::platform::API_KEY.to_owned(),
        // A killed worker's call then brings back a session that may have ended.
        honour_idempotency_key: true,
        ..Options::default()
    };
    let sandbox = Sandbox::start(listener, options).unwrap();
    let mut env = TestEnv::start().await;
    let flow = format!("{:?}", args.flow).to_lowercase();
    env.set("IDV_URL", &sandbox.url()).set("IDV_FLOW", &flow);
    env.set("IDV_SESSION_TTL", SESSION_TTL).set("LOG", "info");
    let mut workers = Workers::start(&env).await;
    let load = Load::new(&env, args.seed, args.people).await;
    println!(
        "{} requests of {} people, flow {flow}, seed {}",
        args.requests, args.people, args.seed
    );
    load.run(&mut env, &mut workers, args.requests, args.rate).await;
    let verdict = Verdict::new(&load, &workers.finished());
    println!("{verdict}");
    println!("{:>8} sessions made", sandbox.stats().sessions_made);
    for (text, count) in workers.warnings() {
        println!("{count:>8} times logged: {text}");
    }
    if let Some(folder) = args.logs {
        workers.save_logs(&folder);
    }
    workers.stop().await;
    if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
