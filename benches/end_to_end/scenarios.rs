//! What is measured, and how.

use std::time::{Duration, Instant, SystemTime};

use tokio::{
    time::{MissedTickBehavior, interval, sleep},
    try_join,
};

use crate::{
    Result,
    load::{Heard, Load},
    platform::Platform,
    subject::{Environment, Running, Subject},
};

/// Requests a second where their pace is set.
const PACE: u32 = 100;
const PACED: usize = 2_000;
/// Whose links are there already, where all are.
const USERS: usize = 1_000;
/// How long a worker is left alone before its idle memory is read.
const IDLE: Duration = Duration::from_secs(3);

/// Something that is measured.
#[derive(Clone, Copy)]
pub(crate) enum Scenario {
    /// A full queue, a new user for each request.
    Full { name: &'static str, latency: u64, concurrency: usize, requests: usize },
    /// A full queue of requests whose links are there.
    Hits,
    /// A hundred requests a second.
    Paced,
    /// A start with a request waiting.
    Start,
    /// Nothing to do.
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
}

/// What a figure says, and how exactly.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
}

const fn measure(name: &'static str, decimals: usize) -> Measure {
    Measure { name, decimals }
}

const RATE: Measure = measure("requests a second", 0);
const PROCESSOR: Measure = measure("processor seconds for 1,000 requests", 3);
const SWITCHES: Measure = measure("times put to sleep, a request", 1);
const PEAK: Measure = measure("peak memory, MiB", 1);
const RESTING: Measure = measure("memory, MiB", 1);
const SIZE: Measure = measure("program, MiB", 1);
const P50: Measure = measure("time to the event, p50, ms", 2);
const P95: Measure = measure("time to the event, p95, ms", 2);
const P99: Measure = measure("time to the event, p99, ms", 2);
const FIRST_CALL: Measure = measure("until the first call, ms", 0);

/// Everything around the workers.
pub(crate) struct Bench {
    pub(crate) load: Load,
    pub(crate) platform: Platform,
    pub(crate) redis: String,
    /// Counted to give each run users of its own.
    pub(crate) runs: usize,
}

/// What workers have taken since a moment, all together.
pub(crate) struct Meter<'a> {
    workers: &'a [Running],
    began: Instant,
    processor: f64,
    switches: f64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(workers: &'a [Running]) -> Result<Self> {
        let (processor, switches) = taken(workers)?;
        Ok(Self { workers, began: Instant::now(), processor, switches })
    }

    /// Requests a second, processor seconds for 1,000 of them, and times put to sleep for each, where
    /// so many were served since.
    pub(crate) fn read(&self, served: usize) -> Result<(f64, f64, f64)> {
        let (seconds, served) = (self.began.elapsed().as_secs_f64(), served as f64);
        let (processor, switches) = taken(self.workers)?;
        let processor = (processor - self.processor) / served * 1000.0;
        Ok((served / seconds, processor, (switches - self.switches) / served))
    }
}

/// Processor seconds and times put to sleep, from the start on.
fn taken(workers: &[Running]) -> Result<(f64, f64)> {
    let mut taken = (0.0, 0.0);
    for worker in workers {
        taken.0 += worker.processor()?;
        taken.1 += worker.switches()?;
    }
    Ok(taken)
}

type Figures = Vec<(Measure, f64)>;

impl Bench {
    /// Has the worker declare its topology; all use the same.
    pub(crate) async fn declare(&mut self, handoff: &Subject) -> Result<()> {
        let worker = self.start(handoff, 1)?;
        self.load.declared().await?;
        worker.stop().await
    }

    pub(crate) async fn run(&mut self, scenario: Scenario, subject: &Subject) -> Result<Figures> {
        self.runs += 1;
        match scenario {
            Scenario::Full { latency, concurrency, requests, .. } => {
                self.platform.answers_after(Duration::from_millis(latency)).await?;
                self.full(subject, concurrency, requests, requests).await
            }
            Scenario::Hits => {
                self.platform.answers_after(Duration::ZERO).await?;
                self.full(subject, 64, USERS, USERS)
                    .await
                    .map_err(|e| format!("populating: {e}"))?;
                let (before, _) = self.platform.calls().await?;
                let figures = self.full(subject, 64, USERS, 20_000).await?;
                match self.platform.calls().await?.0 == before {
                    true => Ok(figures),
                    false => Err("a request was not served from Redis".into()),
                }
            }
            Scenario::Paced => self.paced(subject).await,
            Scenario::Start => self.start_up(subject).await,
            Scenario::Idle => {
                let worker = self.start(subject, 64)?;
                sleep(IDLE).await;
                let (_, now) = worker.memory()?;
                self.stop(subject, [worker]).await?;
                let size = subject.size()?.map(|size| (SIZE, size));
                Ok([(RESTING, now)].into_iter().chain(size).collect())
            }
        }
    }

    pub(crate) fn start(&self, subject: &Subject, concurrency: usize) -> Result<Running> {
        subject.start(&Environment {
            amqp: &self.load.url,
            redis: &self.redis,
            platform: &self.platform.url,
            queue: &self.load.requests.queue,
            events: &self.load.exchange,
            concurrency,
        })
    }

    /// Requests wait; then the worker is started. The first of them, when it is not in full swing yet,
    /// do not count.
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
        self.load.requests.fill(requests, name).await?;
        let workers = [self.start(subject, concurrency)?];
        let mut heard = Heard::new();
        let swing = (2 * concurrency).min(requests / 4);
        self.load.events.hear(&mut heard, swing).await?;
        let meter = Meter::start(&workers)?;
        self.load.events.hear(&mut heard, requests - swing).await?;
        let (rate, processor, switches) = meter.read(requests - swing)?;
        let peak = workers[0].memory()?.0;
        self.stop(subject, workers).await?;
        Ok(vec![(RATE, rate), (PROCESSOR, processor), (SWITCHES, switches), (PEAK, peak)])
    }

    /// Ends workers. What they should have settled, and did not, is no burden to those after them.
    pub(crate) async fn stop(
        &self,
        subject: &Subject,
        workers: impl IntoIterator<Item = Running>,
    ) -> Result<()> {
        for worker in workers {
            worker.stop().await?;
        }
        let left = self.load.clear().await?;
        if left > 0 {
            eprintln!("{left} left by {}", subject.name);
        }
        Ok(())
    }

    async fn paced(&mut self, subject: &Subject) -> Result<Figures> {
        let run = self.runs;
        self.platform.answers_after(Duration::ZERO).await?;
        let workers = [self.start(subject, 64)?];
        let name = |number: usize| (format!("r-{run}-{number}"), format!("user-{run}-{number}"));
        let mut heard = Heard::new();
        let warm = 200;
        self.load.requests.fill(warm, name).await?;
        self.load.events.hear(&mut heard, warm).await?;

        let meter = Meter::start(&workers)?;
        let Load { requests, events, .. } = &mut self.load;
        let send = async {
            let mut sent = Vec::new();
            let mut ticks = interval(Duration::from_secs(1) / PACE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in warm..warm + PACED {
                ticks.tick().await;
                let (id, user) = name(number);
                sent.push((id.clone(), Instant::now()));
                requests.send(&id, &user).await?.await?;
            }
            Ok(sent)
        };
        let (sent, ()) = try_join!(send, events.hear(&mut heard, PACED))?;
        let (_, processor, switches) = meter.read(PACED)?;
        let mut times: Vec<f64> = Vec::new();
        for (id, sent) in sent {
            times.push(heard[&id].duration_since(sent).as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        let figures = vec![
            (P50, at(0.5)),
            (P95, at(0.95)),
            (P99, at(0.99)),
            (PROCESSOR, processor),
            (SWITCHES, switches),
        ];
        self.stop(subject, workers).await?;
        Ok(figures)
    }

    async fn start_up(&mut self, subject: &Subject) -> Result<Figures> {
        let run = self.runs;
        let mut figures = Vec::new();
        for start in 0..5 {
            self.platform.answers_after(Duration::ZERO).await?;
            let name = |_| (format!("r-{run}-{start}"), format!("user-{run}-{start}"));
            self.load.requests.fill(1, name).await?;
            let began = SystemTime::now();
            let worker = self.start(subject, 64)?;
            self.load.events.hear(&mut Heard::new(), 1).await?;
            let (_, first) = self.platform.calls().await?;
            figures.push((FIRST_CALL, first.duration_since(began)?.as_secs_f64() * 1000.0));
            self.stop(subject, [worker]).await?;
        }
        Ok(figures)
    }
}
