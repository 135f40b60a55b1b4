//! Many messages in flight on one channel, and each of their fates known for sure.
//!
//! RabbitMQ returns what is unroutable before it confirms it. The library hands a returned message to
//! whichever confirm of its channel comes next, so the wrong one may get it; but it never keeps one
//! back: where a confirm comes without a message, all that were returned so far have been handed out
//! with confirms that came before. So all confirms of a channel are looked at in one place, all that
//! have come at a time, and then:
//!
//! - a message that was returned, whoever's confirm it came with, is unroutable;
//! - one whose confirm came with no message, and that was not returned, has been taken;
//! - one whose confirm came with another's is unsure. It may be returned yet.
//!
//! What is unsure, and what was in flight when the channel broke, is to be published again, by itself.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, options::BasicPublishOptions, types::ShortString,
};
use tokio::sync::{mpsc, oneshot};

use super::error::PublishError;

/// RabbitMQ returns what no queue takes.
pub(super) const MANDATORY: BasicPublishOptions =
    BasicPublishOptions { mandatory: true, immediate: false };

/// A message, with its id among its properties.
pub(super) struct Message {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
}

/// What became of a message; `None` where that cannot be told.
type Fate = Option<Result<(), PublishError>>;

/// The way into a channel's pipeline. It ends with the last of these.
#[derive(Clone)]
pub(super) struct Pipeline(mpsc::UnboundedSender<(Message, oneshot::Sender<Fate>)>);

impl Pipeline {
    /// Takes over a channel in confirm mode.
    pub(super) fn new(channel: Channel) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        tokio::spawn(run(channel, messages));
        Self(sender)
    }

    /// Whether its channel is still of use.
    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Publishes a message, and returns what became of it.
    pub(super) async fn publish(&self, message: Message) -> Fate {
        let (tell, told) = oneshot::channel();
        self.0.send((message, tell)).ok()?;
        told.await.ok()?
    }
}

pub(super) type Answer = lapin::Result<Confirmation>;

/// Ends with the channel, or when nobody publishes any more and all fates are told.
async fn run(
    channel: Channel,
    mut messages: mpsc::UnboundedReceiver<(Message, oneshot::Sender<Fate>)>,
) {
    let mut in_flight = FuturesUnordered::new();
    let (mut answered, sweep) = (Vec::new(), Sweep::default());
    let mut returned = Returned::default();
    loop {
        tokio::select! {
            biased;
            Some(answer) = in_flight.next() => answered.push(answer),
            message = messages.recv(), if channel.status().connected() => match message {
                Some((message, tell)) => in_flight.push(send(&channel, message, tell)),
                None if in_flight.is_empty() => return,
                None => answered.extend(in_flight.next().await),
            },
            else => return,
        }
        if answered.is_empty() {
            continue;
        }
        // A returned message may have come with any of those that came before.
        sweep.all_that_came(&mut in_flight, &mut answered);
        for (_, _, answer) in &answered {
            returned.note(answer);
        }
        for (id, tell, answer) in answered.drain(..) {
            // Who does not wait any more has given it up.
            let _ = tell.send(returned.fate(&id, &answer));
        }
        if in_flight.is_empty() {
            returned = Returned::default();
        }
    }
}

/// Tells whether it is worth looking again.
#[derive(Default)]
struct Sweep(Arc<Again>);

#[derive(Default)]
struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Sweep {
    /// All that are ready by now, those too that became so a moment before one that was seen to be.
    fn all_that_came<F: Future>(&self, of: &mut FuturesUnordered<F>, to: &mut Vec<F::Output>) {
        let waker = Waker::from(Arc::clone(&self.0));
        let mut context = Context::from_waker(&waker);
        loop {
            self.0.0.store(false, Ordering::SeqCst);
            match of.poll_next_unpin(&mut context) {
                Poll::Ready(Some(done)) => to.push(done),
                Poll::Ready(None) => return,
                // It makes a pause now and then, and says so.
                Poll::Pending if self.0.0.load(Ordering::SeqCst) => {}
                Poll::Pending => return,
            }
        }
    }
}

/// Sends a message, and waits for its confirm.
async fn send(
    channel: &Channel,
    message: Message,
    tell: oneshot::Sender<Fate>,
) -> (Option<ShortString>, oneshot::Sender<Fate>, Answer) {
    let Message { exchange, routing_key, properties, body } = message;
    let id = properties.message_id().clone();
    let sent = channel.basic_publish(exchange, routing_key, MANDATORY, &body, properties).await;
    let answer = match sent {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (id, tell, answer)
}

/// Messages that were returned, by their ids, and how often.
#[derive(Default)]
struct Returned(HashMap<Option<ShortString>, usize>);

impl Returned {
    fn note(&mut self, answer: &Answer) {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = answer {
            *self.0.entry(message.properties.message_id().clone()).or_default() += 1;
        }
    }

    /// What became of the message with this id, whose confirm came, or did not come.
    fn fate(&mut self, id: &Option<ShortString>, answer: &Answer) -> Fate {
        if !self.0.is_empty()
            && answer.is_ok()
            && let Some(times) = self.0.get_mut(id)
        {
            *times -= 1;
            if *times == 0 {
                self.0.remove(id);
            }
            return Some(Err(PublishError::Unroutable));
        }
        match answer {
            Ok(Confirmation::Ack(None)) => Some(Ok(())),
            Ok(Confirmation::Nack(None) | Confirmation::NotRequested) => {
                Some(Err(PublishError::Refused))
            }
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) | Err(_) => None,
        }
    }
}
