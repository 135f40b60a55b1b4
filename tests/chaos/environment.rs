//! Everything around a campaign, and the outages that its faults caused.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    faults::{Fault, Network, Scope, Server},
    plan::PlannedFault,
    platform::Platform,
    servers::{Nodes, Topology},
    support::Flow,
    tls::Tls,
    workers::Workers,
};

/// What was broken, for faults that can cost a session and that no worker logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageKind {
    /// Redis restarted without its data.
    RedisDataLost,
    PlatformUnreachable,
    WorkerStalled,
}

#[derive(Clone, Copy, Debug)]
pub struct Outage {
    pub kind: OutageKind,
    pub scope: Scope,
    pub from: Instant,
    pub until: Instant,
}

pub struct Environment {
    pub workers: Workers,
    pub platform: Platform,
    pub rabbitmq: Nodes,
    redis: Nodes,
    outages: Mutex<Vec<Outage>>,
    started: Instant,
}

impl Environment {
    pub async fn start(topology: Topology, patience: &str, idempotency: bool) -> Self {
        let (rabbitmq, redis) = tokio::join!(Nodes::rabbitmq(topology), Nodes::redis(topology));
        let platform = Platform::start(idempotency).await;
        let tls = Tls::to(&rabbitmq.urls(), &redis.urls(), &platform.url).await;
        let mut settings = redis.settings();
        settings.insert("HANDOFF_REDIS_PATIENCE".to_owned(), patience.to_owned());
        let workers = Workers::start(tls, settings).await;
        Self {
            workers,
            platform,
            rabbitmq,
            redis,
            outages: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Injects each fault at its time, and returns when all are over.
    pub async fn inject(self: &Arc<Self>, faults: Vec<PlannedFault>) {
        let start = Instant::now();
        let mut in_progress = JoinSet::new();
        for PlannedFault { at, fault } in faults {
            sleep_until((start + at).into()).await;
            self.print(&fault.to_string());
            let environment = Arc::clone(self);
            in_progress.spawn(async move { environment.inject_one(fault).await });
        }
        in_progress.join_all().await;
        self.print("all faults are over");
    }

    async fn inject_one(&self, fault: Fault) {
        let from = Instant::now();
        match fault {
            Fault::KillWorker(slot) => self.workers.kill(slot).await,
            Fault::RollingRestart => self.workers.rolling_restart().await,
            Fault::StallWorker(slot, duration) => {
                self.workers.stall(slot, duration).await;
                self.add_outage(OutageKind::WorkerStalled, Scope::One(slot), from);
            }
            Fault::KillServer(server, down_time) => {
                self.server(server).kill(down_time).await;
                self.server_restarted(server, from);
            }
            Fault::RestartServer(server) => {
                self.server(server).restart().await;
                self.server_restarted(server, from);
            }
            Fault::FreezeServer(server, duration) => {
                self.server(server).freeze(duration).await;
                // What it did not replicate before its replica became the primary is lost.
                if self.server(server).is_replicated_redis() {
                    self.server_restarted(server, from);
                }
            }
            Fault::HoldTraffic(network, scope, duration) => {
                self.workers.set_flow(network, scope, Flow::Held);
                sleep(duration).await;
                self.workers.set_flow(network, scope, Flow::Forwarded);
                self.network_failed(network, scope, from);
            }
            Fault::CloseConnections(network, scope) => {
                self.workers.close_connections(network, scope);
                self.network_failed(network, scope, from);
            }
            Fault::Platform(fault, duration) => self.platform.fail(fault, duration),
        }
    }

    fn server(&self, server: Server) -> &Nodes {
        match server {
            Server::Rabbitmq => &self.rabbitmq,
            Server::Redis => &self.redis,
        }
    }

    fn server_restarted(&self, server: Server, from: Instant) {
        if server == Server::Redis {
            self.add_outage(OutageKind::RedisDataLost, Scope::All, from);
        }
    }

    fn network_failed(&self, network: Network, scope: Scope, from: Instant) {
        if network == Network::Platform {
            self.add_outage(OutageKind::PlatformUnreachable, scope, from);
        }
    }

    fn add_outage(&self, kind: OutageKind, scope: Scope, from: Instant) {
        let outage = Outage { kind, scope, from, until: Instant::now() };
        self.outages.lock().unwrap().push(outage);
    }

    pub fn outages(&self) -> Vec<Outage> {
        self.outages.lock().unwrap().clone()
    }

    /// Prints a line with the time since the start.
    pub fn print(&self, line: &str) {
        println!("{:7.1} s  {line}", self.started.elapsed().as_secs_f64());
    }

    /// The seconds from the start to a moment.
    pub fn seconds_at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.started).as_secs_f64()
    }
}
