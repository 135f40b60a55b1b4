//! Measures whether replicas add up, and whether the cost of a request depends on their number.

use std::time::Duration;

use deadpool_redis::redis;

use crate::{
    Result,
    load::EventTimes,
    report::median,
    scenarios::{Harness, Meter},
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

/// Sets `ARGV[2]` keys of about the size of a link's.
const FILL: &str = "for i = 1, ARGV[2] do
    redis.call('SET', 'filling:' .. ARGV[1] + i, string.rep('x', 200))
end";

/// Measures all cases, with 64 requests in flight for each replica.
pub(crate) async fn run(
    harness: &mut Harness,
    handoff: &Subject,
    rounds: usize,
    only: &str,
) -> Result<()> {
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(only)).collect();
    let mut figures = vec![<[Vec<f64>; 3]>::default(); cases.len()];
    for round in 0..rounds {
        for (case, figures) in cases.iter().zip(&mut figures) {
            eprintln!("round {}: {}", round + 1, case.name);
            for (all, value) in figures.iter_mut().zip(measure(harness, handoff, case).await?) {
                all.push(value);
            }
        }
    }
    println!("| | requests per second | CPU seconds per 1,000 requests | platform calls |");
    print!("| --- | ---: | ---: | ---: |");
    for (case, figures) in cases.iter().zip(figures) {
        let [rate, cpu, calls] = figures.map(|values| median(&values).unwrap_or_default());
        print!("\n| {} | {rate:.0} | {cpu:.3} | {calls:.0} |", case.name);
    }
    println!();
    Ok(())
}

async fn measure(harness: &mut Harness, handoff: &Subject, case: &Case) -> Result<[f64; 3]> {
    harness.runs += 1;
    let run = harness.runs;
    let client = redis::Client::open(harness.redis.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    // Deleting a million keys synchronously would exceed the client's time-out.
    redis::cmd("FLUSHDB").arg("ASYNC").query_async::<()>(&mut redis).await?;
    // In batches, so that no script exceeds the client's time-out.
    for first in (0..case.keys).step_by(10_000) {
        let fill = redis::Script::new(FILL);
        fill.arg(first).arg(10_000).invoke_async::<()>(&mut redis).await?;
    }
    harness.sandbox.set_latency(Duration::from_millis(case.latency)).await?;
    let name =
        |number| (format!("r-{run}-{number}"), format!("user-{run}-{}", number % case.users));
    harness.load.requests.publish_all(case.requests, name).await?;
    let mut workers = Vec::new();
    for _ in 0..case.replicas {
        workers.push(harness.start(handoff, 64)?);
    }
    let mut times = EventTimes::new();
    let warm_up = case.requests / 8;
    harness.load.events.receive(&mut times, warm_up).await?;
    let meter = Meter::start(&workers)?;
    // The last requests do not fill all slots, so they are not measured.
    let measured = case.requests * 3 / 4;
    harness.load.events.receive(&mut times, measured).await?;
    let (rate, cpu, _) = meter.read(measured)?;
    harness.load.events.receive(&mut times, case.requests - warm_up - measured).await?;
    harness.stop(handoff, workers).await?;
    let calls = harness.sandbox.calls().await?;
    Ok([rate, cpu, calls.count as f64])
}
