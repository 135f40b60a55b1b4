//! What can break.

use std::{fmt, time::Duration};

/// What breaks. A worker is named by its place: there is always one in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    KillWorker(usize),
    StallWorker(usize, Duration),
    RollingRestart,
    KillNode(Node, Duration),
    RestartNode(Node),
    FreezeNode(Node, Duration),
    /// Bytes wait on their way.
    Swallow(Way, Whose, Duration),
    /// Connections end.
    Reset(Way, Whose),
    Platform(Trouble, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    Rabbitmq,
    Redis,
}

/// A worker's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Rabbitmq,
    Redis,
    Platform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    All,
    One(usize),
}

impl Whose {
    pub fn includes(self, place: usize) -> bool {
        self == Self::All || self == Self::One(place)
    }
}

/// How the platform fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Unavailable,
    TooManyRequests,
    TooSlow,
    CutOff,
    BrokenJson,
    KeyRefused,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
        match self {
            Self::KillWorker(place) => write!(f, "worker {place}: kill -9, another one at once"),
            Self::StallWorker(place, time) => {
                write!(f, "worker {place}: stalled for {}", seconds(time))
            }
            Self::RollingRestart => f.write_str("workers: SIGTERM, one after another"),
            Self::KillNode(node, time) => {
                write!(f, "{node}: kill -9, started after {}", seconds(time))
            }
            Self::RestartNode(node) => write!(f, "{node}: restarted"),
            Self::FreezeNode(node, time) => write!(f, "{node}: frozen for {}", seconds(time)),
            Self::Swallow(way, whose, time) => {
                write!(f, "network to {way}, {whose}: silent for {}", seconds(time))
            }
            Self::Reset(way, whose) => write!(f, "network to {way}, {whose}: connections end"),
            Self::Platform(trouble, time) => {
                write!(f, "platform: {trouble:?} for {}", seconds(time))
            }
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all workers"),
            Self::One(place) => write!(f, "worker {place}"),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rabbitmq => "RabbitMQ",
            Self::Redis => "Redis",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rabbitmq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::Platform => "the platform",
        })
    }
}
