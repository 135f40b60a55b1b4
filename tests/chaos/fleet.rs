//! Three workers, each with ways of its own to RabbitMQ, Redis and the platform, and what befell them.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};

use crate::{
    crowd::{EVENTS, REQUESTS},
    harm::{Way, Whose},
    plan::WORKERS,
    support::{Flow, Proxy, Worker, worker::Settings},
};

/// By then a worker is ready when nothing is broken.
const READY: Duration = Duration::from_secs(10);
/// The request queue.
pub const QUEUE: &str = "chaos.requested";

pub struct Fleet {
    places: Vec<Place>,
    /// Everything workers did that they were not told to.
    pub oddities: Mutex<Vec<String>>,
}

struct Place {
    number: usize,
    settings: Settings,
    ways: [Proxy; 3],
    present: tokio::sync::Mutex<Present>,
    ends: Mutex<Vec<End>>,
}

struct Present {
    worker: Worker,
    /// How many there were before it.
    nth: usize,
}

/// The end of a worker.
pub struct End {
    pub worker: String,
    pub at: Instant,
    pub killed: bool,
    /// It is gone, but what it logged is still here.
    process: Worker,
}

impl End {
    /// What it logged under this message.
    pub fn lines(&self, message: &str) -> Vec<serde_json::Value> {
        self.process.lines(message)
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Fleet {
    pub async fn start(rabbitmq: &str, redis: &str, platform: &str) -> Self {
        let mut places = Vec::new();
        for number in 0..WORKERS {
            let ways =
                [Proxy::to(rabbitmq).await, Proxy::to(redis).await, Proxy::to(platform).await];
            let settings = [
                ("AMQP_URL", ways[0].url(rabbitmq)),
                ("REDIS_URL", ways[1].url(redis)),
                ("IDV_URL", ways[2].url(platform)),
                ("IDV_API_KEY", "key".to_owned()),
                ("IDV_TIMEOUT", "3s".to_owned()),
                ("QUEUE", QUEUE.to_owned()),
                ("REQUEST_EXCHANGE", REQUESTS.to_owned()),
                ("EVENT_EXCHANGE", EVENTS.to_owned()),
                ("RETRY_DELAYS", "2s,5s,10s,20s,40s".to_owned()),
                ("SHUTDOWN_GRACE", "8s".to_owned()),
                ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
                ("LOG", "debug".to_owned()),
                ("LOG_FORMAT", "json".to_owned()),
            ];
            let settings =
                settings.map(|(name, value)| (format!("HANDOFF_{name}"), value)).into_iter();
            let settings: Settings = settings.collect();
            let worker = start(&settings, number, 0);
            worker.logged("consuming").await;
            let present = tokio::sync::Mutex::new(Present { worker, nth: 0 });
            places.push(Place { number, settings, ways, present, ends: Mutex::default() });
        }
        Self { places, oddities: Mutex::default() }
    }

    /// SIGKILL, and another one at once.
    pub async fn kill(&self, place: usize) {
        let place = &self.places[place];
        let mut present = place.present.lock().await;
        present.worker.signal("KILL");
        let status = present.worker.ended().await;
        self.replace(place, &mut present, status, true);
    }

    /// SIGTERM to one after another, each replaced when it has ended.
    pub async fn roll(&self) {
        for place in &self.places {
            self.roll_one(place).await;
        }
    }

    async fn roll_one(&self, place: &Place) {
        let mut present = place.present.lock().await;
        present.worker.signal("TERM");
        let status = present.worker.ended().await;
        self.replace(place, &mut present, status, false);
    }

    /// SIGSTOP and, later, SIGCONT.
    pub async fn stall(&self, place: usize, lasts: Duration) {
        let present = self.places[place].present.lock().await;
        present.worker.signal("STOP");
        sleep(lasts).await;
        present.worker.signal("CONT");
    }

    fn replace(&self, place: &Place, present: &mut Present, status: Option<i32>, killed: bool) {
        let worker = name(place.number, present.nth);
        // SIGTERM that comes before it is listened for ends a process as well.
        let as_told = match status {
            Some(status) => status == 0 && !killed,
            None => killed || present.worker.log().is_empty(),
        };
        if !as_told {
            self.odd(format!("{worker} ended by itself, or with another status: {status:?}"));
        }
        present.nth += 1;
        let next = start(&place.settings, place.number, present.nth);
        let process = std::mem::replace(&mut present.worker, next);
        let end = End { worker, at: Instant::now(), killed, process };
        place.ends.lock().unwrap().push(end);
    }

    /// The network between workers and a server lets nothing through, or lets it pass again.
    pub fn network(&self, way: Way, whose: Whose, flow: Flow) {
        for proxy in self.ways(way, whose) {
            proxy.both(flow);
        }
    }

    /// Connections between workers and a server end.
    pub fn reset(&self, way: Way, whose: Whose) {
        for proxy in self.ways(way, whose) {
            proxy.cut();
        }
    }

    fn ways(&self, way: Way, whose: Whose) -> impl Iterator<Item = &Proxy> {
        let places = self.places.iter().filter(move |place| whose.includes(place.number));
        places.map(move |place| &place.ways[way as usize])
    }

    /// Stops all, looks whether each does so in good order, and returns every worker's end.
    pub async fn stop(&self) -> Vec<End> {
        let mut ends = Vec::new();
        for place in &self.places {
            let number = place.number;
            let ready = async {
                while place.present.lock().await.worker.page("/readyz").await.0 != 200 {
                    sleep(Duration::from_millis(200)).await;
                }
            };
            if timeout(READY, ready).await.is_err() {
                self.odd(format!("worker {number} is not ready at the end"));
            }
            self.roll_one(place).await;
            ends.append(&mut place.ends.lock().unwrap());
        }
        ends
    }

    fn odd(&self, what: String) {
        self.oddities.lock().unwrap().push(what);
    }
}

/// By this name the platform knows a worker.
fn name(place: usize, nth: usize) -> String {
    format!("worker-{place}-{nth}")
}

/// The place that a worker of this name has or had.
pub fn place_of(worker: &str) -> usize {
    worker.split('-').nth(1).unwrap().parse().unwrap()
}

fn start(settings: &Settings, place: usize, nth: usize) -> Worker {
    let mut settings = settings.clone();
    let url = settings.get_mut("HANDOFF_IDV_URL").unwrap();
    *url = format!("{}/{}", url.trim_end_matches('/'), name(place, nth));
    Worker::start(&settings)
}
