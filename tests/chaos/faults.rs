//! The faults that a campaign injects.

use std::{fmt, time::Duration};

/// A fault. A worker is named by its slot, as it may have been replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillWorker(usize),
    StallWorker(usize, Duration),
    RollingRestart,
    /// Kills a server, and starts it after this time.
    KillServer(Server, Duration),
    RestartServer(Server),
    FreezeServer(Server, Duration),
    /// Holds all bytes back.
    HoldTraffic(Network, Scope, Duration),
    CloseConnections(Network, Scope),
    Platform(PlatformFault, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Rabbitmq,
    Redis,
}

/// The network between workers and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Rabbitmq,
    Redis,
    Platform,
}

/// The workers that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    One(usize),
}

impl Scope {
    pub fn includes(self, slot: usize) -> bool {
        self == Self::All || self == Self::One(slot)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformFault {
    Unavailable,
    TooManyRequests,
    TooSlow,
    /// The connection breaks in the middle of the body.
    TruncatedBody,
    BrokenJson,
    KeyRefused,
}

impl Fault {
    /// The server that is not available during this fault.
    pub fn server(self) -> Option<Server> {
        match self {
            Self::KillServer(server, _)
            | Self::RestartServer(server)
            | Self::FreezeServer(server, _) => Some(server),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
        match self {
            Self::KillWorker(slot) => write!(f, "worker {slot}: killed and replaced"),
            Self::StallWorker(slot, time) => {
                write!(f, "worker {slot}: stalled for {}", seconds(time))
            }
            Self::RollingRestart => f.write_str("workers: rolling restart"),
            Self::KillServer(server, time) => {
                write!(f, "{server}: killed, started after {}", seconds(time))
            }
            Self::RestartServer(server) => write!(f, "{server}: restarted"),
            Self::FreezeServer(server, time) => {
                write!(f, "{server}: frozen for {}", seconds(time))
            }
            Self::HoldTraffic(network, scope, time) => {
                write!(f, "{scope} to {network}: traffic held for {}", seconds(time))
            }
            Self::CloseConnections(network, scope) => {
                write!(f, "{scope} to {network}: connections closed")
            }
            Self::Platform(fault, time) => write!(f, "platform: {fault:?} for {}", seconds(time)),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all workers"),
            Self::One(slot) => write!(f, "worker {slot}"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rabbitmq => "RabbitMQ",
            Self::Redis => "Redis",
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rabbitmq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::Platform => "the platform",
        })
    }
}
