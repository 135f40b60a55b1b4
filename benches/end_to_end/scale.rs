//! Whether replicas add up, and whether a request costs the same however many there are.

use std::time::Duration;

use deadpool_redis::redis;

use crate::{
    Result,
    load::Heard,
    report::median,
    scenarios::{Bench, Meter},
    subject::Subject,
};

struct Case {
    name: &'static str,
    latency: u64,
    replicas: usize,
    requests: usize,
    users: usize,
    keys: usize,
}

const fn replicas(name: &'static str, replicas: usize) -> Case {
    let requests = 1_600 * replicas;
    Case { name, latency: 200, replicas, requests, users: requests, keys: 0 }
}

const fn many(name: &'static str, requests: usize, users: usize, keys: usize) -> Case {
    Case { name, latency: 0, replicas: 1, requests, users, keys }
}

const CASES: [Case; 7] = [
    replicas("1 replica, 200 ms", 1),
    replicas("2 replicas, 200 ms", 2),
    replicas("4 replicas, 200 ms", 4),
    many("2,000 waiting, 0 ms", 2_000, 2_000, 0),
    many("10,000 waiting, 0 ms", 10_000, 10_000, 0),
    many("one user, 10,000 times, 0 ms", 10_000, 1, 0),
    many("10,000 waiting, a million keys in Redis, 0 ms", 10_000, 10_000, 1_000_000),
];

/// So many keys of the size of a link's.
const FILL: &str = "for i = 1, ARGV[2] do
    redis.call('SET', 'filling:' .. ARGV[1] + i, string.rep('x', 200))
end";

/// 64 in flight for each replica.
pub(crate) async fn run(
    bench: &mut Bench,
    handoff: &Subject,
    rounds: usize,
    only: &str,
) -> Result<()> {
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(only)).collect();
    let mut figures = vec![<[Vec<f64>; 3]>::default(); cases.len()];
    for round in 0..rounds {
        for (case, figures) in cases.iter().zip(&mut figures) {
            eprintln!("round {}: {}", round + 1, case.name);
            for (all, value) in figures.iter_mut().zip(measure(bench, handoff, case).await?) {
                all.push(value);
            }
        }
    }
    println!("| | requests a second | processor seconds for 1,000 requests | platform calls |");
    print!("| --- | ---: | ---: | ---: |");
    for (case, figures) in cases.iter().zip(figures) {
        let [rate, processor, calls] = figures.map(|values| median(&values).unwrap_or_default());
        print!("\n| {} | {rate:.0} | {processor:.3} | {calls:.0} |", case.name);
    }
    println!();
    Ok(())
}

async fn measure(bench: &mut Bench, handoff: &Subject, case: &Case) -> Result<[f64; 3]> {
    bench.runs += 1;
    let run = bench.runs;
    let client = redis::Client::open(bench.redis.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    // A million keys would take longer to go than the client waits.
    redis::cmd("FLUSHDB").arg("ASYNC").query_async::<()>(&mut redis).await?;
    // Some at a time, lest any of these takes longer than the client waits.
    for first in (0..case.keys).step_by(10_000) {
        let fill = redis::Script::new(FILL);
        fill.arg(first).arg(10_000).invoke_async::<()>(&mut redis).await?;
    }
    bench.platform.answers_after(Duration::from_millis(case.latency)).await?;
    let name =
        |number| (format!("r-{run}-{number}"), format!("user-{run}-{}", number % case.users));
    bench.load.requests.fill(case.requests, name).await?;
    let mut workers = Vec::new();
    for _ in 0..case.replicas {
        workers.push(bench.start(handoff, 64)?);
    }
    let mut heard = Heard::new();
    let swing = case.requests / 8;
    bench.load.events.hear(&mut heard, swing).await?;
    let meter = Meter::start(&workers)?;
    // The last of them are fewer than there are hands.
    let counted = case.requests * 3 / 4;
    bench.load.events.hear(&mut heard, counted).await?;
    let (rate, processor, _) = meter.read(counted)?;
    bench.load.events.hear(&mut heard, case.requests - swing - counted).await?;
    bench.stop(handoff, workers).await?;
    let (calls, _) = bench.platform.calls().await?;
    Ok([rate, processor, calls as f64])
}
