//! Where the plan is carried out, and what happened when.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::{
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::{
    fleet::Fleet,
    harm::{Harm, Node, Way, Whose},
    plan::Step,
    platform::Platform,
    support::{self, Flow},
};

/// What was broken for a while, of those things that can cost a session and are in nobody's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Redis came up empty.
    RedisForgot,
    PlatformAway,
    WorkerStalled,
}

/// When something was broken, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub broken: Broken,
    pub whose: Whose,
    pub from: Instant,
    pub until: Instant,
}

pub struct Stage {
    pub fleet: Fleet,
    pub platform: Platform,
    pub rabbitmq: support::Node,
    pub redis: support::Node,
    /// One thing at a time is done to a server.
    busy: [tokio::sync::Mutex<()>; 2],
    spans: Mutex<Vec<Span>>,
    began: Instant,
}

impl Stage {
    pub async fn set(heeds_keys: bool) -> Self {
        let (rabbitmq, redis) = tokio::join!(support::Node::rabbitmq(), support::Node::redis());
        let platform = Platform::start(heeds_keys).await;
        let fleet = Fleet::start(&rabbitmq.url, &redis.url, &platform.url).await;
        let (busy, spans, began) = (Default::default(), Mutex::default(), Instant::now());
        Self { fleet, platform, rabbitmq, redis, busy, spans, began }
    }

    /// Carries out the plan, each step at its time, and ends when all is mended again.
    pub async fn play(self: &Arc<Self>, steps: Vec<Step>) {
        let began = Instant::now();
        let mut under_way = JoinSet::new();
        for Step { at, harm } in steps {
            sleep_until((began + at).into()).await;
            self.say(&harm.to_string());
            let stage = Arc::clone(self);
            under_way.spawn(async move { stage.harm(harm).await });
        }
        under_way.join_all().await;
        self.say("all is mended");
    }

    async fn harm(&self, harm: Harm) {
        let from = Instant::now();
        let note = |broken, whose| self.note(broken, whose, from);
        match harm {
            Harm::KillWorker(place) => self.fleet.kill(place).await,
            Harm::RollingRestart => self.fleet.roll().await,
            Harm::StallWorker(place, lasts) => {
                self.fleet.stall(place, lasts).await;
                note(Broken::WorkerStalled, Whose::One(place));
            }
            Harm::KillNode(which, away) => {
                let (node, _busy) = self.node(which).await;
                node.kill().await;
                sleep(away).await;
                node.start().await;
                self.was_down(which, from);
            }
            Harm::RestartNode(which) => {
                let (node, _busy) = self.node(which).await;
                node.stop().await;
                node.start().await;
                self.was_down(which, from);
            }
            Harm::FreezeNode(which, lasts) => {
                let (node, _busy) = self.node(which).await;
                node.freeze().await;
                sleep(lasts).await;
                node.thaw().await;
            }
            Harm::Swallow(way, whose, lasts) => {
                self.fleet.network(way, whose, Flow::Waits);
                sleep(lasts).await;
                self.fleet.network(way, whose, Flow::Passes);
                self.cut(way, whose, from);
            }
            Harm::Reset(way, whose) => {
                self.fleet.reset(way, whose);
                self.cut(way, whose, from);
            }
            Harm::Platform(trouble, lasts) => self.platform.fail(trouble, lasts),
        }
    }

    async fn node(&self, which: Node) -> (&support::Node, tokio::sync::MutexGuard<'_, ()>) {
        let node = if which == Node::Rabbitmq { &self.rabbitmq } else { &self.redis };
        (node, self.busy[which as usize].lock().await)
    }

    fn was_down(&self, which: Node, from: Instant) {
        if which == Node::Redis {
            self.note(Broken::RedisForgot, Whose::All, from);
        }
    }

    fn cut(&self, way: Way, whose: Whose, from: Instant) {
        if way == Way::Platform {
            self.note(Broken::PlatformAway, whose, from);
        }
    }

    fn note(&self, broken: Broken, whose: Whose, from: Instant) {
        let span = Span { broken, whose, from, until: Instant::now() };
        self.spans.lock().unwrap().push(span);
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Prints what happens, with the time since the start.
    pub fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// The time since the start, of a moment.
    pub fn seconds(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.began).as_secs_f64()
    }
}
