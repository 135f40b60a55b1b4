//! Examines the topology without changing it.
//!
//! AMQP cannot read a queue's arguments. But declaring an existing object changes nothing: RabbitMQ
//! accepts it if all arguments are equal, and otherwise names one that differs. So the survey
//! checks that an object exists, and only then declares it.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, options::ConfirmSelectOptions, protocol::AMQPSoftError,
    types::FieldTable,
};
use tokio::time::sleep;

use super::{
    declare::{QueueCounts, declare_exchange, declare_queue},
    definition::{QueueDeclaration, Topology},
    difference::Difference,
};
use crate::{
    broker::{
        amqp::{answer, object_name, open_channel, rpc, short_string},
        connection::Connection,
        error::{BrokerError, cause, refusal_text, soft_error},
        pipeline::MANDATORY,
    },
    config::BrokerSettings,
};

const BLOCKED_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Ends the loop over differing arguments in any case. No queue has as many.
const MAX_DIFFERENCES: usize = 20;

/// A connection for examining the topology.
pub(crate) struct TopologySurvey {
    connection: Connection,
    pub(crate) topology: Topology,
}

/// An exchange or queue, compared with what the worker needs.
pub(crate) struct SurveyedObject {
    pub(crate) name: String,
    pub(crate) kind: ObjectKind,
    pub(crate) state: ObjectState,
    /// For a queue that exists.
    pub(crate) counts: Option<QueueCounts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Exchange,
    Queue,
}

impl ObjectKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Queue => "queue",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ObjectState {
    Matches,
    Missing,
    Differs(Vec<Difference>),
    /// It exists, but RabbitMQ refused the comparison, with this text.
    Unknown(String),
}

impl TopologySurvey {
    pub(crate) async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let connection = Connection::open_any(&settings.nodes.current()).await?;
        Ok(Self { connection, topology: Topology::new(settings) })
    }

    pub(crate) fn vhost(&self) -> String {
        self.connection.lapin.status().vhost().to_string()
    }

    /// Compares each exchange and queue.
    pub(crate) async fn objects(&self) -> Result<Vec<SurveyedObject>, BrokerError> {
        let mut objects = Vec::new();
        for (name, _) in self.topology.exchanges() {
            let state = self.exchange(name).await?;
            let name = name.to_owned();
            let kind = ObjectKind::Exchange;
            objects.push(SurveyedObject { name, kind, state, counts: None });
        }
        for queue in self.topology.queues.iter().chain([&self.topology.ended]) {
            let (state, counts) = self.queue(queue).await?;
            let name = queue.name.clone();
            let kind = ObjectKind::Queue;
            objects.push(SurveyedObject { name, kind, state, counts });
        }
        Ok(objects)
    }

    /// Counts what is in a queue of any name; `None` if it does not exist, or may not be looked at.
    pub(crate) async fn look_up(&self, name: &str) -> Result<Option<QueueCounts>, BrokerError> {
        let channel = self.channel().await?;
        let queue = declare_queue(&channel, object_name(name)?, true, FieldTable::default());
        Ok(self.compare(queue).await?.ok())
    }

    /// Checks that RabbitMQ accepts publishes, with two unroutable messages.
    ///
    /// Two, because RabbitMQ blocks a connection only when it publishes: during an alarm it still
    /// accepts the first message.
    pub(crate) async fn check_publishing(&self) -> Result<(), BrokerError> {
        let publish = async {
            let channel = self.connection.lapin.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let no_queue = format!("handoff-doctor-{}", uuid::Uuid::new_v4().simple());
            for _ in 0..2 {
                let properties = BasicProperties::default();
                channel
                    .basic_publish("".into(), short_string(&no_queue), MANDATORY, &[], properties)
                    .await?
                    .await?;
            }
            Ok(())
        };
        let blocked = async {
            while !self.connection.lapin.status().blocked() {
                sleep(BLOCKED_POLL_INTERVAL).await;
            }
        };
        tokio::select! {
            published = rpc("publish to the default exchange", publish) => published,
            () = blocked => Err(BrokerError::new(
                "RabbitMQ blocks publishing: a memory or disk alarm is on",
            )),
        }
    }

    pub(crate) async fn close(self) {
        self.connection.close().await;
    }

    async fn exchange(&self, name: &str) -> Result<ObjectState, BrokerError> {
        for passive in [true, false] {
            let channel = self.channel().await?;
            let declared = declare_exchange(&channel, object_name(name)?, passive);
            if let Err(state) = self.compare(declared).await? {
                return Ok(state);
            }
        }
        Ok(ObjectState::Matches)
    }

    async fn queue(
        &self,
        queue: &QueueDeclaration,
    ) -> Result<(ObjectState, Option<QueueCounts>), BrokerError> {
        let counts = match self.declare(queue, true, queue.arguments.clone()).await? {
            Ok(counts) => Some(counts),
            Err(state) => return Ok((state, None)),
        };
        // RabbitMQ names one differing argument at a time, so its value is adopted for the next
        // question.
        let mut arguments = queue.arguments.clone();
        let mut differences = Vec::new();
        for _ in 0..MAX_DIFFERENCES {
            match self.declare(queue, false, arguments.clone()).await? {
                Err(ObjectState::Differs(more)) => differences.extend(more),
                Err(other) if differences.is_empty() => return Ok((other, counts)),
                Ok(_) | Err(_) => break,
            }
            if !differences.last().is_some_and(|last: &Difference| last.adopt(&mut arguments)) {
                break;
            }
        }
        let state = if differences.is_empty() {
            ObjectState::Matches
        } else {
            ObjectState::Differs(differences)
        };
        Ok((state, counts))
    }

    async fn declare(
        &self,
        queue: &QueueDeclaration,
        passive: bool,
        arguments: FieldTable,
    ) -> Result<Result<QueueCounts, ObjectState>, BrokerError> {
        let channel = self.channel().await?;
        self.compare(declare_queue(&channel, object_name(&queue.name)?, passive, arguments)).await
    }

    /// A new channel for each question: RabbitMQ closes the channel when it refuses.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        open_channel(&self.connection.lapin).await
    }

    /// Waits for RabbitMQ's answer. The outer error means that there was none.
    async fn compare<T>(
        &self,
        declared: impl Future<Output = lapin::Result<T>>,
    ) -> Result<Result<T, ObjectState>, BrokerError> {
        let operation = "examine the topology";
        let error = match answer(operation, declared).await? {
            Ok(declared) => return Ok(Ok(declared)),
            Err(error) => error,
        };
        if !self.connection.lapin.status().connected() {
            return Err(BrokerError::during(operation, &error));
        }
        Ok(Err(match soft_error(&error) {
            Some(AMQPSoftError::NOTFOUND) => ObjectState::Missing,
            Some(AMQPSoftError::PRECONDITIONFAILED) => {
                ObjectState::Differs(vec![Difference::parse(refusal_text(&error))])
            }
            _ => ObjectState::Unknown(cause(&error)),
        }))
    }
}
