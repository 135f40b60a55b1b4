//! Three workers, each with proxies of its own to RabbitMQ, Redis and the platform.
//!
//! They use TLS for all three, and the proxies are in front of it.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use handoff::sandbox::Options;
use tokio::time::{sleep, timeout};

use crate::{
    clients::{EVENT_EXCHANGE, REQUEST_EXCHANGE},
    faults::{Network, Scope},
    plan::WORKERS,
    support::{Flow, Proxy, Worker, leaks::CACHE_KEY, log_text, worker::Settings},
    tls::Tls,
};

/// How long a worker may take to become ready when nothing is broken.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The request queue.
pub const QUEUE: &str = "chaos.requested";
/// What each connection of a worker would contain without TLS, by network.
const PLAIN_TEXT: [&[u8]; 3] = [b"AMQP\0\0\x09\x01", b"EVALSHA", b"authorization"];

pub struct Workers {
    slots: Vec<Slot>,
    _tls: Tls,
    /// Everything that workers did unexpectedly.
    pub anomalies: Mutex<Vec<String>>,
}

/// A place for one worker at a time.
struct Slot {
    number: usize,
    settings: Settings,
    /// To the nodes of each server, by network.
    proxies: [Vec<Proxy>; 3],
    current: tokio::sync::Mutex<Current>,
    exits: Mutex<Vec<Exit>>,
}

struct Current {
    worker: Worker,
    /// The number of earlier workers in the slot.
    generation: usize,
}

/// A worker that has exited.
pub struct Exit {
    pub worker: String,
    pub at: Instant,
    pub killed: bool,
    /// Kept for its log.
    process: Worker,
}

impl Exit {
    /// The log lines with this message.
    pub fn log_lines(&self, message: &str) -> Vec<serde_json::Value> {
        self.process.log_lines(message)
    }

    /// The whole log.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

impl Workers {
    /// Starts them with these settings, too.
    pub async fn start(tls: Tls, more: Settings) -> Self {
        let mut slots = Vec::new();
        for number in 0..WORKERS {
            let mut proxies = [Vec::new(), Vec::new(), Vec::new()];
            let mut urls = [String::new(), String::new(), String::new()];
            let platform = [tls.platform(number).to_owned()];
            for (network, nodes) in [&tls.rabbitmq[..], &tls.redis, &platform].iter().enumerate() {
                let mut list = Vec::new();
                for url in *nodes {
                    let proxy = Proxy::to(url).await;
                    list.push(proxy.url(url));
                    proxies[network].push(proxy);
                }
                urls[network] = list.join(",");
            }
            let [rabbitmq, redis, platform] = urls;
            let settings: Settings = [
                ("AMQP_URL", rabbitmq),
                ("REDIS_URL", redis),
                ("IDV_URL", platform),
                ("IDV_API_KEY", Options::DEFAULT_API_KEY.to_owned()),
                ("IDV_TIMEOUT", "3s".to_owned()),
                ("IDV_RATE_LIMIT", "6000/1m".to_owned()),
                ("CACHE_KEY", CACHE_KEY.to_owned()),
                ("QUEUE", QUEUE.to_owned()),
                ("REQUEST_EXCHANGE", REQUEST_EXCHANGE.to_owned()),
                ("EVENT_EXCHANGE", EVENT_EXCHANGE.to_owned()),
                ("RETRY_DELAYS", "2s,5s,10s,20s,40s".to_owned()),
                ("SHUTDOWN_GRACE", "8s".to_owned()),
                ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
                ("LOG", "debug".to_owned()),
                ("LOG_FORMAT", "json".to_owned()),
            ]
            .into_iter()
            .map(|(name, value)| (format!("HANDOFF_{name}"), value))
            .chain(tls.trust())
            .chain(more.clone())
            .collect();
            let worker = start(&settings, number, 0);
            worker.wait_for_log(log_text::CONSUMING).await;
            let current = tokio::sync::Mutex::new(Current { worker, generation: 0 });
            slots.push(Slot { number, settings, proxies, current, exits: Mutex::default() });
        }
        Self { slots, _tls: tls, anomalies: Mutex::default() }
    }

    /// Kills a worker and replaces it at once.
    pub async fn kill(&self, slot: usize) {
        let slot = &self.slots[slot];
        let mut current = slot.current.lock().await;
        current.worker.signal("KILL");
        let status = current.worker.wait_for_exit().await;
        self.replace(slot, &mut current, status, true);
    }

    /// Restarts the workers one after another.
    pub async fn rolling_restart(&self) {
        for slot in &self.slots {
            self.restart(slot).await;
        }
    }

    async fn restart(&self, slot: &Slot) {
        let mut current = slot.current.lock().await;
        current.worker.signal("TERM");
        let status = current.worker.wait_for_exit().await;
        self.replace(slot, &mut current, status, false);
    }

    /// Stops a worker with SIGSTOP, and continues it after this time.
    pub async fn stall(&self, slot: usize, duration: Duration) {
        let current = self.slots[slot].current.lock().await;
        current.worker.signal("STOP");
        sleep(duration).await;
        current.worker.signal("CONT");
    }

    fn replace(&self, slot: &Slot, current: &mut Current, status: Option<i32>, killed: bool) {
        let worker = name(slot.number, current.generation);
        // SIGTERM also kills a process that has not installed its handler yet.
        let expected = match status {
            Some(status) => status == 0 && !killed,
            None => killed || current.worker.output().is_empty(),
        };
        if !expected {
            self.add_anomaly(format!("{worker} exited unexpectedly, with status {status:?}"));
        }
        current.generation += 1;
        let next = start(&slot.settings, slot.number, current.generation);
        let process = std::mem::replace(&mut current.worker, next);
        let exit = Exit { worker, at: Instant::now(), killed, process };
        slot.exits.lock().unwrap().push(exit);
    }

    pub fn set_flow(&self, network: Network, scope: Scope, flow: Flow) {
        for proxy in self.proxies(network, scope) {
            proxy.set_flow(flow);
        }
    }

    pub fn close_connections(&self, network: Network, scope: Scope) {
        for proxy in self.proxies(network, scope) {
            proxy.close_connections();
        }
    }

    fn proxies(&self, network: Network, scope: Scope) -> impl Iterator<Item = &Proxy> {
        let slots = self.slots.iter().filter(move |slot| scope.includes(slot.number));
        slots.flat_map(move |slot| &slot.proxies[network as usize])
    }

    /// Stops all workers, checks that each becomes ready, used TLS and exits cleanly, and returns every exit.
    pub async fn stop(&self) -> Vec<Exit> {
        let mut exits = Vec::new();
        for slot in &self.slots {
            let ready = async {
                while slot.current.lock().await.worker.get("/readyz").await.0 != 200 {
                    sleep(Duration::from_millis(200)).await;
                }
            };
            if timeout(READY_TIMEOUT, ready).await.is_err() {
                self.add_anomaly(format!("worker {} is not ready at the end", slot.number));
            }
            self.restart(slot).await;
            self.check_tls(slot);
            exits.append(&mut slot.exits.lock().unwrap());
        }
        exits
    }

    /// Checks that the slot's workers have sent something to each server, and nothing in plain text.
    fn check_tls(&self, slot: &Slot) {
        for (proxies, plain) in slot.proxies.iter().zip(PLAIN_TEXT) {
            if proxies.is_empty() {
                continue;
            }
            let sent = proxies.iter().map(Proxy::take_sent).collect::<Vec<_>>().concat();
            if sent.is_empty() || sent.windows(plain.len()).any(|part| part == plain) {
                let plain = plain.escape_ascii();
                self.add_anomaly(format!("worker {} used no TLS: {plain}", slot.number));
            }
        }
    }

    fn add_anomaly(&self, anomaly: String) {
        self.anomalies.lock().unwrap().push(anomaly);
    }
}

/// The name of a worker, which the platform sees in its base URL.
fn name(slot: usize, generation: usize) -> String {
    format!("worker-{slot}-{generation}")
}

/// The slot of a worker, from its name.
pub fn slot_of(worker: &str) -> usize {
    worker.split('-').nth(1).unwrap().parse().unwrap()
}

fn start(settings: &Settings, slot: usize, generation: usize) -> Worker {
    let mut settings = settings.clone();
    let url = settings.get_mut("HANDOFF_IDV_URL").unwrap();
    *url = format!("{}/{}", url.trim_end_matches('/'), name(slot, generation));
    Worker::start(&settings)
}
