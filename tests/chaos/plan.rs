//! The plan of a campaign: what is asked for and what breaks, drawn from a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::harm::{Harm, Node, Trouble, Way, Whose};

/// How many workers there are at any time.
pub const WORKERS: usize = 3;
/// Requests asked for in a second, on average.
const PACE: u32 = 25;

/// What happens when.
pub struct Plan {
    pub steps: Vec<Step>,
    pub asks: Vec<Ask>,
}

/// Something breaks.
pub struct Step {
    pub at: Duration,
    pub harm: Harm,
}

/// Somebody asks for a link.
pub struct Ask {
    pub at: Duration,
    pub id: String,
    pub user: String,
    pub workflow: &'static str,
}

impl Plan {
    /// The same seed and length make the same plan.
    pub fn draw(seed: u64, length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self { steps: steps(&mut rng, length), asks: asks(&mut rng, length) }
    }

    /// How often what breaks.
    pub fn counts(&self) -> [(&'static str, usize); 6] {
        let count = |is: fn(&Harm) -> bool| self.steps.iter().filter(|step| is(&step.harm)).count();
        let node = |harm: &Harm| match *harm {
            Harm::KillNode(node, _) | Harm::RestartNode(node) | Harm::FreezeNode(node, _) => {
                Some(node)
            }
            _ => None,
        };
        let nodes =
            |which| self.steps.iter().filter(|step| node(&step.harm) == Some(which)).count();
        [
            (
                "workers killed or stalled",
                count(|harm| matches!(harm, Harm::KillWorker(_) | Harm::StallWorker(..))),
            ),
            ("rolling restarts of the workers", count(|harm| *harm == Harm::RollingRestart)),
            ("RabbitMQ killed, restarted or frozen", nodes(Node::Rabbitmq)),
            ("Redis killed, restarted or frozen", nodes(Node::Redis)),
            ("network cuts", count(|harm| matches!(harm, Harm::Swallow(..) | Harm::Reset(..)))),
            ("times the platform failed", count(|harm| matches!(harm, Harm::Platform(..)))),
        ]
    }
}

fn steps(rng: &mut StdRng, length: Duration) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = Duration::from_secs(3);
    // A node is left alone until it is surely up again.
    let mut alone = [at; 2];
    while at + Duration::from_secs(5) < length {
        let harm = loop {
            let harm = harm(rng);
            let (node, rest) = match harm {
                Harm::KillNode(node, _) | Harm::RestartNode(node) | Harm::FreezeNode(node, _) => {
                    (node, if node == Node::Rabbitmq { 25 } else { 12 })
                }
                _ => break harm,
            };
            if alone[node as usize] <= at {
                alone[node as usize] = at + Duration::from_secs(rest);
                break harm;
            }
        };
        steps.push(Step { at, harm });
        at += millis(rng, 500, 4_000);
    }
    steps
}

fn harm(rng: &mut StdRng) -> Harm {
    let place = rng.random_range(0..WORKERS);
    let whose = if rng.random_bool(0.5) { Whose::All } else { Whose::One(place) };
    let way = [Way::Rabbitmq, Way::Redis, Way::Platform][rng.random_range(0..3)];
    match rng.random_range(0..100) {
        0..40 => Harm::KillWorker(place),
        40..46 => Harm::StallWorker(place, millis(rng, 500, 9_000)),
        46..50 => Harm::RollingRestart,
        50..54 => Harm::KillNode(Node::Rabbitmq, millis(rng, 0, 4_000)),
        54..56 => Harm::RestartNode(Node::Rabbitmq),
        56..58 => Harm::FreezeNode(Node::Rabbitmq, millis(rng, 500, 12_000)),
        58..59 => Harm::KillNode(Node::Redis, millis(rng, 0, 3_000)),
        59..60 => Harm::RestartNode(Node::Redis),
        60..66 => Harm::FreezeNode(Node::Redis, millis(rng, 200, 5_000)),
        66..74 => Harm::Swallow(way, whose, millis(rng, 300, 15_000)),
        74..82 => Harm::Reset(way, whose),
        _ => {
            let trouble = match rng.random_range(0..6) {
                0 => Trouble::Unavailable,
                1 => Trouble::TooManyRequests,
                2 => Trouble::TooSlow,
                3 => Trouble::CutOff,
                4 => Trouble::BrokenJson,
                _ => Trouble::KeyRefused,
            };
            Harm::Platform(trouble, millis(rng, 300, 4_000))
        }
    }
}

fn asks(rng: &mut StdRng, length: Duration) -> Vec<Ask> {
    let count = PACE * u32::try_from(length.as_secs()).unwrap();
    let users = (count / 5).max(1);
    let mut asks = Vec::new();
    let mut at = Duration::ZERO;
    let mut number = 0;
    while number < count {
        let user = format!("user-{}", rng.random_range(0..users));
        let workflow = if rng.random_bool(0.9) { "kyc" } else { "age" };
        // Some people tap twice, or five times.
        let taps = if rng.random_bool(0.1) { rng.random_range(2..6) } else { 1 };
        for _ in 0..taps {
            asks.push(Ask { at, id: format!("r-{number}"), user: user.clone(), workflow });
            number += 1;
        }
        at += millis(rng, 0, 2_000) * taps / PACE;
    }
    asks
}

fn millis(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..to))
}
