//! The plan of a campaign: the requests and the faults, drawn from a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::faults::{Fault, Network, PlatformFault, Scope, Server};

pub const WORKERS: usize = 3;
const REQUESTS_PER_SECOND: u32 = 25;
/// The ids of renewals begin with it.
pub const RENEWAL: &str = "renewal-";

pub struct Plan {
    pub faults: Vec<PlannedFault>,
    pub requests: Vec<PlannedRequest>,
}

pub struct PlannedFault {
    /// When it begins, from the start of the campaign.
    pub at: Duration,
    pub fault: Fault,
}

pub struct PlannedRequest {
    /// When it is published, from the start of the campaign.
    pub at: Duration,
    pub id: String,
    pub user: String,
    pub workflow: &'static str,
    /// Does not accept a link made before it.
    pub renew: bool,
    /// Whether it expires this long after it was planned to be published.
    pub expires_after: Option<Duration>,
}

impl Plan {
    /// Draws a plan. The same seed and length give the same plan.
    pub fn draw(seed: u64, length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self { faults: draw_faults(&mut rng, length), requests: draw_requests(&mut rng, length) }
    }

    /// The number of faults of each kind.
    pub fn fault_counts(&self) -> [(&'static str, usize); 6] {
        let count = |matches: fn(Fault) -> bool| {
            self.faults.iter().filter(|planned| matches(planned.fault)).count()
        };
        [
            (
                "workers killed or stalled",
                count(|fault| matches!(fault, Fault::KillWorker(_) | Fault::StallWorker(..))),
            ),
            ("rolling restarts of the workers", count(|fault| fault == Fault::RollingRestart)),
            (
                "RabbitMQ killed, restarted or frozen",
                count(|fault| fault.server() == Some(Server::Rabbitmq)),
            ),
            (
                "Redis killed, restarted or frozen",
                count(|fault| fault.server() == Some(Server::Redis)),
            ),
            (
                "network faults",
                count(|fault| {
                    matches!(fault, Fault::HoldTraffic(..) | Fault::CloseConnections(..))
                }),
            ),
            ("platform faults", count(|fault| matches!(fault, Fault::Platform(..)))),
        ]
    }
}

fn draw_faults(rng: &mut StdRng, length: Duration) -> Vec<PlannedFault> {
    let mut faults = Vec::new();
    let mut at = Duration::from_secs(3);
    // A server is not broken again before it has certainly recovered.
    let mut recovered_at = [at; 2];
    while at + Duration::from_secs(5) < length {
        let fault = loop {
            let fault = draw_fault(rng);
            let Some(server) = fault.server() else { break fault };
            let recovery = if server == Server::Rabbitmq { 25 } else { 12 };
            if recovered_at[server as usize] <= at {
                recovered_at[server as usize] = at + Duration::from_secs(recovery);
                break fault;
            }
        };
        faults.push(PlannedFault { at, fault });
        at += millis(rng, 500, 4_000);
    }
    faults
}

fn draw_fault(rng: &mut StdRng) -> Fault {
    let slot = rng.random_range(0..WORKERS);
    let scope = if rng.random_bool(0.5) { Scope::All } else { Scope::One(slot) };
    let network = [Network::Rabbitmq, Network::Redis, Network::Platform][rng.random_range(0..3)];
    match rng.random_range(0..100) {
        0..40 => Fault::KillWorker(slot),
        40..46 => Fault::StallWorker(slot, millis(rng, 500, 9_000)),
        46..50 => Fault::RollingRestart,
        50..54 => Fault::KillServer(Server::Rabbitmq, millis(rng, 0, 4_000)),
        54..56 => Fault::RestartServer(Server::Rabbitmq),
        56..58 => Fault::FreezeServer(Server::Rabbitmq, millis(rng, 500, 12_000)),
        58..59 => Fault::KillServer(Server::Redis, millis(rng, 0, 3_000)),
        59..60 => Fault::RestartServer(Server::Redis),
        60..66 => Fault::FreezeServer(Server::Redis, millis(rng, 200, 5_000)),
        66..74 => Fault::HoldTraffic(network, scope, millis(rng, 300, 15_000)),
        74..82 => Fault::CloseConnections(network, scope),
        _ => {
            let fault = match rng.random_range(0..6) {
                0 => PlatformFault::Unavailable,
                1 => PlatformFault::TooManyRequests,
                2 => PlatformFault::TooSlow,
                3 => PlatformFault::TruncatedBody,
                4 => PlatformFault::BrokenJson,
                _ => PlatformFault::KeyRefused,
            };
            Fault::Platform(fault, millis(rng, 300, 4_000))
        }
    }
}

fn draw_requests(rng: &mut StdRng, length: Duration) -> Vec<PlannedRequest> {
    let count = REQUESTS_PER_SECOND * u32::try_from(length.as_secs()).unwrap();
    let users = (count / 5).max(1);
    let mut requests = Vec::new();
    let mut at = Duration::ZERO;
    let mut number = 0;
    while number < count {
        let user = format!("user-{}", rng.random_range(0..users));
        let workflow = if rng.random_bool(0.9) { "kyc" } else { "age" };
        // One in ten sends two to five requests at once, like a person who taps repeatedly.
        let taps = if rng.random_bool(0.1) { rng.random_range(2..6) } else { 1 };
        for _ in 0..taps {
            let renew = rng.random_bool(0.05);
            let id = format!("{}{number}", if renew { RENEWAL } else { "r-" });
            let expires_after = rng.random_bool(0.05).then(|| millis(rng, 2_000, 20_000));
            let user = user.clone();
            requests.push(PlannedRequest { at, id, user, workflow, renew, expires_after });
            number += 1;
        }
        at += millis(rng, 0, 2_000) * taps / REQUESTS_PER_SECOND;
    }
    requests
}

fn millis(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..to))
}
