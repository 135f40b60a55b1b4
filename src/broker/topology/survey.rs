//! Looking at the topology without changing it: what is there, whether it fits, what waits in it.
//!
//! AMQP has no way to read the arguments of a queue. But declaring what is there changes nothing: it is
//! either as declared, or refused with what differs. So each object is first looked for, and only what
//! was found is declared.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, ExchangeKind,
    options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tokio::time::{sleep, timeout};

use super::{Difference, Queue, QueueCounts, Topology, short};
use crate::{
    broker::{
        BrokerError, Connection, Role,
        error::{Refusal, cause, refusal},
        pipeline::MANDATORY,
        rpc::{RPC_TIMEOUT, open_channel},
        short_string,
    },
    config::BrokerSettings,
};

/// How often to look whether RabbitMQ has blocked the connection.
const LOOK_OFTEN: Duration = Duration::from_millis(50);
/// More than a queue can have.
const MOST_DIFFERENCES: usize = 20;

/// A connection to look around with.
pub struct Survey {
    connection: Connection,
    topology: Topology,
}

/// An exchange or a queue, as it was found.
pub struct SurveyedObject {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ObjectKind,
    /// How it compares with what it should be.
    pub state: ObjectState,
    /// What waits in a queue that is there, and who consumes.
    pub counts: Option<QueueCounts>,
}

/// An exchange or a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// An exchange.
    Exchange,
    /// A queue.
    Queue,
}

impl ObjectKind {
    /// Its name in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
        }
    }
}

/// How an object compares with what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectState {
    /// It is as it should be.
    Matches,
    /// It is not there.
    Missing,
    /// It is there, and differs.
    Differs(Vec<Difference>),
    /// It is there; whether it fits could not be told, in RabbitMQ's words.
    Unknown(String),
}

impl Survey {
    /// Connects.
    ///
    /// # Errors
    /// There is no connection.
    pub async fn open(config: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open(&config.url, Role::Client).await?;
        Ok(Self { connection, topology: Topology::new(config) })
    }

    /// The names of everything.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The virtual host.
    pub fn vhost(&self) -> String {
        self.connection.lapin().status().vhost().to_string()
    }

    /// Looks at every exchange and queue.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn objects(&self) -> Result<Vec<SurveyedObject>, BrokerError> {
        let mut objects = Vec::new();
        for (name, _) in &self.topology.exchanges {
            let state = self.exchange(name).await?;
            objects.push(SurveyedObject {
                name: name.clone(),
                kind: ObjectKind::Exchange,
                state,
                counts: None,
            });
        }
        for queue in &self.topology.queues {
            let (state, counts) = self.queue(queue).await?;
            objects.push(SurveyedObject {
                name: queue.name.clone(),
                kind: ObjectKind::Queue,
                state,
                counts,
            });
        }
        Ok(objects)
    }

    /// Whether RabbitMQ takes messages: two are published that can reach no queue, and come back. A
    /// RabbitMQ that is short of something takes the first of a connection, and no other.
    ///
    /// # Errors
    /// It does not, or the user may not publish.
    pub async fn takes_messages(&self) -> Result<(), BrokerError> {
        let doing = "publish to the default exchange";
        let publish = async {
            let channel = self.connection.lapin().create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let nowhere = format!("handoff-doctor-{}", uuid::Uuid::new_v4().simple());
            for _ in 0..2 {
                let properties = BasicProperties::default();
                channel
                    .basic_publish("".into(), short_string(&nowhere), MANDATORY, &[], properties)
                    .await?
                    .await?;
            }
            Ok(())
        };
        let blocked = async {
            while !self.connection.lapin().status().blocked() {
                sleep(LOOK_OFTEN).await;
            }
        };
        let published = async {
            tokio::select! {
                published = publish => published
                    .map_err(|error: lapin::Error| BrokerError::during(doing, &error)),
                () = blocked => {
                    let why = "RabbitMQ blocks publishing: it is short of memory or disk";
                    Err(BrokerError::new(why))
                }
            }
        };
        timeout(RPC_TIMEOUT, published).await.unwrap_or_else(|_| Err(BrokerError::timeout(doing)))
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.connection.close().await;
    }

    async fn exchange(&self, name: &str) -> Result<ObjectState, BrokerError> {
        let declare = async |passive| {
            let channel = self.channel().await?;
            let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
            let (name, kind) = (short(name)?, ExchangeKind::Topic);
            self.ask(channel.exchange_declare(name, kind, options, FieldTable::default())).await
        };
        for passive in [true, false] {
            if let Err(state) = declare(passive).await? {
                return Ok(state);
            }
        }
        Ok(ObjectState::Matches)
    }

    async fn queue(
        &self,
        queue: &Queue,
    ) -> Result<(ObjectState, Option<QueueCounts>), BrokerError> {
        let (state, counts) = self.declare(queue, true, queue.arguments.clone()).await?;
        if state != ObjectState::Matches {
            return Ok((state, None));
        }
        // RabbitMQ names one argument at a time. So what it names is taken over, and it is asked again.
        let (mut arguments, mut all) = (queue.arguments.clone(), Vec::new());
        for _ in 0..MOST_DIFFERENCES {
            match self.declare(queue, false, arguments.clone()).await?.0 {
                ObjectState::Differs(differences) => all.extend(differences),
                ObjectState::Matches => break,
                other if all.is_empty() => return Ok((other, counts)),
                _ => break,
            }
            if !all.last().is_some_and(|last: &Difference| last.adopt(&mut arguments)) {
                break;
            }
        }
        let state = if all.is_empty() { ObjectState::Matches } else { ObjectState::Differs(all) };
        Ok((state, counts))
    }

    async fn declare(
        &self,
        queue: &Queue,
        passive: bool,
        arguments: FieldTable,
    ) -> Result<(ObjectState, Option<QueueCounts>), BrokerError> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
        let declared = channel.queue_declare(short(&queue.name)?, options, arguments);
        Ok(match self.ask(declared).await? {
            Ok(found) => {
                let (messages, consumers) = (found.message_count(), found.consumer_count());
                (ObjectState::Matches, Some(QueueCounts { messages, consumers }))
            }
            Err(state) => (state, None),
        })
    }

    /// One of its own for each question: a refusal closes it.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        open_channel(self.connection.lapin()).await
    }

    /// The inner error is RabbitMQ's answer, the outer one that there was none.
    async fn ask<T>(
        &self,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<Result<T, ObjectState>, BrokerError> {
        let doing = "look at the topology";
        let answer = timeout(RPC_TIMEOUT, question).await;
        let error = match answer.map_err(|_| BrokerError::timeout(doing))? {
            Ok(answer) => return Ok(Ok(answer)),
            Err(error) => error,
        };
        if !self.connection.lapin().status().connected() {
            return Err(BrokerError::during(doing, &error));
        }
        Ok(Err(match refusal(&error) {
            Some(Refusal::NotFound) => ObjectState::Missing,
            Some(Refusal::PreconditionFailed) => {
                ObjectState::Differs(vec![Difference::read(&cause(&error))])
            }
            _ => ObjectState::Unknown(cause(&error)),
        }))
    }
}
