//! Measures what a request costs, end to end.
//!
//! ```text
//! end-to-end [--rounds N] [--only PART] [--tuned] [--tls platform|all]
//!            [--peers FOLDER | --scale | --instructions FOLDER]
//! ```
//!
//! It compares `handoff run`, with metrics, leases, checkpoints and logs on, with the bare loop of
//! `benches/floor`. RabbitMQ and Redis are real, and the platform is a `handoff sandbox`.
//!
//! With `--tls`, the platform is behind TLS 1.3, and each subject is measured over HTTP/1.1 and over
//! HTTP/2. With `--tls all`, RabbitMQ and Redis are behind TLS, too.
//!
//! With `--instructions`, it counts the instructions of a request instead, and leaves callgrind's
//! profiles in the folder; a build with symbols (`--profile profiling`) makes them readable.
//!
//! All subjects take turns in each round, so that other load on the machine affects all of them
//! alike. The table shows medians over the rounds.

mod certificates;
mod front;
mod instructions;
mod load;
mod report;
mod sandbox;
mod scale;
mod scenarios;
mod subject;

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
};

use load::Load;
use report::Report;
use sandbox::Sandbox;
use scenarios::Harness;
use subject::{Protocol, Subject};

/// Every error ends the run, as partial measurements are useless.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The API key of the sandbox.
const API_KEY: &str = "key";

struct Options {
    rounds: usize,
    peers: Option<PathBuf>,
    only: String,
    scale: bool,
    instructions: Option<PathBuf>,
    tuned: bool,
    tls: Tls,
}

/// What is behind TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    Nothing,
    Platform,
    All,
}

fn main() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    match &arguments[..] {
        [front, folder, amqp, redis] if front == "front" => {
            // One thread, like a sandbox.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(front::run(Path::new(folder), amqp.clone(), redis.clone()))
        }
        _ => runtime.enable_all().build()?.block_on(bench(options(arguments)?)),
    }
}

async fn bench(options: Options) -> Result<()> {
    let load = Load::connect(&var("HANDOFF_AMQP_URL")?).await?;
    let (mut amqp, mut redis) = (var("HANDOFF_AMQP_URL")?, var("HANDOFF_REDIS_URL")?);
    let sandbox = match options.tls {
        Tls::Nothing => Sandbox::start().await?,
        Tls::Platform | Tls::All => Sandbox::start_with_tls(&amqp, &redis).await?,
    };
    if options.tls == Tls::All {
        (amqp, redis) = sandbox.with_tls(&amqp, &redis)?;
    }
    let mut harness = Harness { load, sandbox, amqp, redis, runs: 0, callgrind: None };
    let handoff = Subject::handoff()?;
    harness.declare(&handoff).await?;
    if options.scale {
        return scale::run(&mut harness, &handoff, options.rounds, &options.only).await;
    }
    let subjects = subjects(&options)?;
    if let Some(folder) = &options.instructions {
        return instructions::run(&mut harness, &subjects, folder).await;
    }
    let mut report = Report::new(&subjects);
    for round in 0..options.rounds {
        for scenario in scenarios::ALL {
            if !scenario.name().contains(&options.only) || !scenario.is_for(options.tls) {
                continue;
            }
            for turn in 0..subjects.len() {
                // The order rotates from round to round.
                let at = (turn + round) % subjects.len();
                eprintln!("round {}: {}: {}", round + 1, scenario.name(), subjects[at].name);
                for (measure, value) in harness.run(scenario, &subjects[at]).await? {
                    report.add(at, scenario.name(), measure, value);
                }
            }
        }
    }
    println!("{report}");
    Ok(())
}

fn subjects(options: &Options) -> Result<Vec<Subject>> {
    let protocols: &[Protocol] = match options.tls {
        Tls::Nothing => &[Protocol::Plain],
        Tls::Platform | Tls::All => &[Protocol::Http1, Protocol::Http2],
    };
    let mut subjects = Vec::new();
    for protocol in protocols {
        subjects.push(Subject::floor()?.over_tls(*protocol));
        if options.tuned {
            subjects.push(Subject::tuned_floor()?.over_tls(*protocol));
        }
        subjects.push(Subject::handoff()?.over_tls(*protocol));
    }
    if let Some(folder) = &options.peers {
        // They speak HTTP/1.1 only.
        subjects.extend(Subject::peers(folder).map(|peer| peer.over_tls(protocols[0])));
    }
    Ok(subjects)
}

fn options(arguments: Vec<String>) -> Result<Options> {
    let mut options = Options {
        rounds: 3,
        peers: None,
        only: String::new(),
        scale: false,
        instructions: None,
        tuned: false,
        tls: Tls::Nothing,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--peers" => options.peers = Some(value()?.into()),
            "--only" => options.only = value()?,
            "--scale" => options.scale = true,
            "--instructions" => options.instructions = Some(value()?.into()),
            "--tuned" => options.tuned = true,
            "--tls" => {
                options.tls = match value()?.as_str() {
                    "all" => Tls::All,
                    _ => Tls::Platform,
                }
            }
            _ => {
                return Err(format!(
                    "unknown option `{argument}`: use --rounds N, --only PART, --tuned, --tls platform|all, \
                     --peers FOLDER, --scale or --instructions FOLDER"
                )
                .into());
            }
        }
    }
    if options.scale && options.tls != Tls::Nothing {
        return Err("--scale is measured without --tls".into());
    }
    Ok(options)
}

fn var(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: run this with `make bench`").into())
}
