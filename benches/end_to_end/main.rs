//! Measures what a request costs, end to end.
//!
//! ```text
//! end-to-end [--rounds N] [--only PART] [--peers FOLDER | --scale]
//! ```
//!
//! It compares `handoff run`, with metrics, leases, checkpoints and logs on, with the bare loop of
//! `benches/floor`. RabbitMQ and Redis are real, and the platform is a `handoff sandbox`.
//!
//! All subjects take turns in each round, so that other load on the machine affects all of them
//! alike. The table shows medians over the rounds.

mod load;
mod report;
mod sandbox;
mod scale;
mod scenarios;
mod subject;

use std::{env, error::Error, path::PathBuf};

use load::Load;
use report::Report;
use sandbox::Sandbox;
use scenarios::Harness;
use subject::Subject;

/// Every error ends the run, as partial measurements are useless.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The API key of the sandbox.
const API_KEY: &str = "key";

struct Options {
    rounds: usize,
    peers: Option<PathBuf>,
    only: String,
    scale: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options()?;
    let load = Load::connect(&var("HANDOFF_AMQP_URL")?).await?;
    let sandbox = Sandbox::start().await?;
    let mut subjects = vec![Subject::floor()?, Subject::handoff()?];
    let mut harness = Harness { load, sandbox, redis: var("HANDOFF_REDIS_URL")?, runs: 0 };
    harness.declare(&subjects[1]).await?;
    if options.scale {
        return scale::run(&mut harness, &subjects[1], options.rounds, &options.only).await;
    }
    if let Some(folder) = &options.peers {
        subjects.extend(Subject::peers(folder));
    }
    let mut report = Report::new(&subjects);
    for round in 0..options.rounds {
        for scenario in scenarios::ALL {
            if !scenario.name().contains(&options.only) {
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

fn options() -> Result<Options> {
    let mut options = Options { rounds: 3, peers: None, only: String::new(), scale: false };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--peers" => options.peers = Some(value()?.into()),
            "--only" => options.only = value()?,
            "--scale" => options.scale = true,
            _ => {
                return Err(format!(
                    "unknown option `{argument}`: use --rounds N, --peers FOLDER, --only PART or --scale"
                )
                .into());
            }
        }
    }
    Ok(options)
}

fn var(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: run this with `make bench`").into())
}
