//! What a request costs, end to end: `handoff run` with metrics, leases, checkpoints and logs on, beside
//! the bare loop of `benches/floor`, on a real RabbitMQ and Redis and with a platform in a process of
//! its own.
//!
//! ```text
//! end-to-end [--rounds N] [--only PART] [--peers FOLDER | --scale]
//! ```
//!
//! All take turns in each round, so that whatever else the machine does meets all of them; what is
//! printed are medians over the rounds.

mod load;
mod platform;
mod report;
mod scale;
mod scenarios;
mod subject;

use std::{env, error::Error, path::PathBuf};

use load::Load;
use platform::Platform;
use report::Report;
use scenarios::Bench;
use subject::Subject;

/// Whatever goes wrong ends the run: half a measurement is none.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

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
    let platform = Platform::start().await?;
    let mut subjects = vec![Subject::floor()?, Subject::handoff()?];
    let mut bench = Bench { load, platform, redis: var("HANDOFF_REDIS_URL")?, runs: 0 };
    bench.declare(&subjects[1]).await?;
    if options.scale {
        return scale::run(&mut bench, &subjects[1], options.rounds, &options.only).await;
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
                // Whoever goes first in one round goes later in the next.
                let at = (turn + round) % subjects.len();
                eprintln!("round {}: {}: {}", round + 1, scenario.name(), subjects[at].name);
                for (measure, value) in bench.run(scenario, &subjects[at]).await? {
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
                    "`{argument}` is not known: --rounds N, --peers FOLDER, --only PART, --scale"
                )
                .into());
            }
        }
    }
    Ok(options)
}

fn var(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: run this by `make bench`").into())
}
