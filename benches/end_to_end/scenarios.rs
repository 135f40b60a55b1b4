//! The scenarios, and how each is measured.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    time::{MissedTickBehavior, interval, sleep},
    try_join,
};

use crate::{
    Result, Tls,
    load::{EventTimes, Load},
    sandbox::Sandbox,
    subject::{Subject, Worker, WorkerSettings},
};

/// Requests per second in [`Scenario::Paced`].
const PACE: u32 = 100;
const PACED: usize = 2_000;
/// Users in [`Scenario::Hits`].
const CACHED_USERS: usize = 1_000;
/// How long a worker idles before its memory is read.
const IDLE_TIME: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
pub(crate) enum Scenario {
    /// A full queue, with a new user for each request.
    Full { name: &'static str, latency: u64, concurrency: usize, requests: usize },
    /// A full queue of requests whose links are cached.
    Hits,
    /// 100 requests per second.
    Paced,
    /// A start with one request in the queue.
    Start,
    /// An empty queue.
    Idle,
}

pub(crate) const ALL: [Scenario; 8] = [
    full("0 ms, 64 in flight", 0, 64, 20_000),
    full("200 ms, 64 in flight", 200, 64, 1_000),
    full("200 ms, 256 in flight", 200, 256, 4_000),
    full("200 ms, 1,024 in flight", 200, 1_024, 16_000),
    Scenario::Hits,
    Scenario::Paced,
    Scenario::Start,
    Scenario::Idle,
];

const fn full(name: &'static str, latency: u64, concurrency: usize, requests: usize) -> Scenario {
    Scenario::Full { name, latency, concurrency, requests }
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full { name, .. } => name,
            Self::Hits => "all cached, 64 in flight",
            Self::Paced => "100 a second",
            Self::Start => "start",
            Self::Idle => "idle",
        }
    }

    /// Whether it is measured with this much TLS: what makes no calls, only if Redis is behind it.
    pub(crate) fn is_for(self, tls: Tls) -> bool {
        !matches!((self, tls), (Self::Hits, Tls::Platform))
    }
}

/// The name of a figure, and its precision.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
}

const fn measure(name: &'static str, decimals: usize) -> Measure {
    Measure { name, decimals }
}

const RATE: Measure = measure("requests per second", 0);
const CPU: Measure = measure("CPU seconds per 1,000 requests", 3);
const SWITCHES: Measure = measure("context switches per request", 1);
const PEAK: Measure = measure("peak memory, MiB", 1);
const IDLE_MEMORY: Measure = measure("memory, MiB", 1);
const SIZE: Measure = measure("program, MiB", 1);
const P50: Measure = measure("time to the event, p50, ms", 2);
const P95: Measure = measure("time to the event, p95, ms", 2);
const P99: Measure = measure("time to the event, p99, ms", 2);
const HANDSHAKES: Measure = measure("TLS handshakes", 0);
const RESUMED: Measure = measure("of these resumed", 0);
const CONNECTIONS: Measure = measure("connections to the platform", 0);
const FIRST_CALL: Measure = measure("time to the first call, ms", 0);

/// Everything around the workers.
pub(crate) struct Harness {
    pub(crate) load: Load,
    pub(crate) sandbox: Sandbox,
    /// The URLs for the workers.
    pub(crate) amqp: String,
    pub(crate) redis: String,
    /// Counts the runs, to give each of them its own users.
    pub(crate) runs: usize,
    /// Where callgrind writes its profile, while workers run under it.
    pub(crate) callgrind: Option<PathBuf>,
}

/// Measures the resources that workers use from a moment on.
pub(crate) struct Meter<'a> {
    workers: &'a [Worker],
    started: Instant,
    cpu: f64,
    switches: f64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(workers: &'a [Worker]) -> Result<Self> {
        let (cpu, switches) = usage(workers)?;
        Ok(Self { workers, started: Instant::now(), cpu, switches })
    }

    /// Returns requests per second, CPU seconds per 1,000 requests, and context switches per
    /// request.
    pub(crate) fn read(&self, served: usize) -> Result<(f64, f64, f64)> {
        let seconds = self.started.elapsed().as_secs_f64();
        let served = served as f64;
        let (cpu, switches) = usage(self.workers)?;
        let cpu = (cpu - self.cpu) / served * 1000.0;
        Ok((served / seconds, cpu, (switches - self.switches) / served))
    }
}

/// CPU seconds and context switches of all workers since they started.
fn usage(workers: &[Worker]) -> Result<(f64, f64)> {
    let mut cpu = 0.0;
    let mut switches = 0.0;
    for worker in workers {
        cpu += worker.cpu()?;
        switches += worker.context_switches()?;
    }
    Ok((cpu, switches))
}

type Figures = Vec<(Measure, f64)>;

impl Harness {
    /// Has a worker declare the topology, which all subjects share.
    pub(crate) async fn declare(&mut self, handoff: &Subject) -> Result<()> {
        let worker = self.start(handoff, 1)?;
        self.load.wait_for_queue().await?;
        worker.stop().await
    }

    pub(crate) async fn run(&mut self, scenario: Scenario, subject: &Subject) -> Result<Figures> {
        self.runs += 1;
        match scenario {
            Scenario::Full { latency, concurrency, requests, .. } => {
                self.sandbox.set_latency(Duration::from_millis(latency)).await?;
                self.full(subject, concurrency, requests, requests).await
            }
            Scenario::Hits => {
                self.sandbox.set_latency(Duration::ZERO).await?;
                self.full(subject, 64, CACHED_USERS, CACHED_USERS)
                    .await
                    .map_err(|error| format!("filling the cache: {error}"))?;
                let before = self.sandbox.calls().await?.count;
                let figures = self.full(subject, 64, CACHED_USERS, 20_000).await?;
                if self.sandbox.calls().await?.count != before {
                    return Err("a request was not served from Redis".into());
                }
                Ok(figures)
            }
            Scenario::Paced => self.paced(subject).await,
            Scenario::Start => self.start_up(subject).await,
            Scenario::Idle => {
                let worker = self.start(subject, 64)?;
                sleep(IDLE_TIME).await;
                let (_, now) = worker.memory()?;
                self.stop(subject, [worker]).await?;
                let size = subject.size()?.map(|size| (SIZE, size));
                Ok([(IDLE_MEMORY, now)].into_iter().chain(size).collect())
            }
        }
    }

    pub(crate) fn start(&self, subject: &Subject, concurrency: usize) -> Result<Worker> {
        subject.start(&WorkerSettings {
            amqp: &self.amqp,
            redis: &self.redis,
            platform: &self.sandbox.url(subject.protocol),
            queue: &self.load.requests.queue,
            events: &self.load.exchange,
            concurrency,
            authority: self.sandbox.authority().as_deref(),
            callgrind: self.callgrind.as_deref(),
        })
    }

    /// Fills the queue, then starts the worker. The first requests warm it up and are not measured.
    async fn full(
        &mut self,
        subject: &Subject,
        concurrency: usize,
        users: usize,
        requests: usize,
    ) -> Result<Figures> {
        let run = self.runs;
        let name = |number| {
            (format!("r-{run}-{requests}-{number}"), format!("user-{run}-{}", number % users))
        };
        self.load.requests.publish_all(requests, name).await?;
        let workers = [self.start(subject, concurrency)?];
        let mut times = EventTimes::new();
        let warm_up = (2 * concurrency).min(requests / 4);
        self.load.events.receive(&mut times, warm_up).await?;
        let meter = Meter::start(&workers)?;
        self.load.events.receive(&mut times, requests - warm_up).await?;
        let (rate, cpu, switches) = meter.read(requests - warm_up)?;
        let peak = workers[0].memory()?.0;
        self.stop(subject, workers).await?;
        let mut figures = vec![(RATE, rate), (CPU, cpu), (SWITCHES, switches), (PEAK, peak)];
        if let Some(connections) = self.sandbox.connections().await? {
            figures.extend([
                (HANDSHAKES, connections.handshakes as f64),
                (RESUMED, connections.resumed as f64),
                (CONNECTIONS, connections.max_open as f64),
            ]);
        }
        Ok(figures)
    }

    /// Stops workers, and purges what they left unsettled, so that it does not burden the next ones.
    pub(crate) async fn stop(
        &self,
        subject: &Subject,
        workers: impl IntoIterator<Item = Worker>,
    ) -> Result<()> {
        for worker in workers {
            worker.stop().await?;
        }
        let left = self.load.purge().await?;
        if left > 0 {
            eprintln!("{} left {left} requests in the queue", subject.name);
        }
        Ok(())
    }

    async fn paced(&mut self, subject: &Subject) -> Result<Figures> {
        let run = self.runs;
        self.sandbox.set_latency(Duration::ZERO).await?;
        let workers = [self.start(subject, 64)?];
        let name = |number: usize| (format!("r-{run}-{number}"), format!("user-{run}-{number}"));
        let mut times = EventTimes::new();
        let warm_up = 200;
        self.load.requests.publish_all(warm_up, name).await?;
        self.load.events.receive(&mut times, warm_up).await?;

        let meter = Meter::start(&workers)?;
        let Load { requests, events, .. } = &mut self.load;
        let send = async {
            let mut sent = Vec::new();
            let mut ticks = interval(Duration::from_secs(1) / PACE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in warm_up..warm_up + PACED {
                ticks.tick().await;
                let (id, user) = name(number);
                sent.push((id.clone(), Instant::now()));
                requests.publish(&id, &user).await?.await?;
            }
            Ok(sent)
        };
        let (sent, ()) = try_join!(send, events.receive(&mut times, PACED))?;
        let (_, cpu, switches) = meter.read(PACED)?;
        let mut waits_ms: Vec<f64> = Vec::new();
        for (id, sent) in sent {
            waits_ms.push(times[&id].duration_since(sent).as_secs_f64() * 1000.0);
        }
        waits_ms.sort_by(f64::total_cmp);
        let at = |share: f64| waits_ms[(waits_ms.len() as f64 * share) as usize];
        let figures = vec![
            (P50, at(0.5)),
            (P95, at(0.95)),
            (P99, at(0.99)),
            (CPU, cpu),
            (SWITCHES, switches),
        ];
        self.stop(subject, workers).await?;
        Ok(figures)
    }

    async fn start_up(&mut self, subject: &Subject) -> Result<Figures> {
        let run = self.runs;
        let mut figures = Vec::new();
        for start in 0..5 {
            self.sandbox.set_latency(Duration::ZERO).await?;
            let name = |_| (format!("r-{run}-{start}"), format!("user-{run}-{start}"));
            self.load.requests.publish_all(1, name).await?;
            let started = self.sandbox.uptime().await?;
            let worker = self.start(subject, 64)?;
            self.load.events.receive(&mut EventTimes::new(), 1).await?;
            let first = self.sandbox.calls().await?.first.ok_or("no call was recorded")?;
            figures.push((FIRST_CALL, first.saturating_sub(started).as_secs_f64() * 1000.0));
            self.stop(subject, [worker]).await?;
        }
        Ok(figures)
    }
}
