//! Exchanges and queues: how they differ from what the worker needs, and what AMQP does not show.

use super::{
    check::{Check, Verdict},
    format::quoted,
};
use crate::broker::{
    Difference, ObjectKind, ObjectState, ServerProperties, SurveyedObject, Topology,
};

/// Checks an exchange or a queue; `None` if it needs no mention.
///
/// With `declare`, the worker fails to declare an object that differs. Without it, the worker uses
/// the object as it is.
pub(super) fn check_object(
    object: &SurveyedObject,
    topology: &Topology,
    declare: bool,
    vhost: &str,
) -> Option<Check> {
    let kind = object.kind.as_str();
    let what = format!("the {kind} `{}`", object.name);
    let vhost = quoted(vhost);
    let ctl = format!("rabbitmqctl --vhost {vhost}");
    let verdict = if declare { Verdict::Finding } else { Verdict::Hint };
    // Requests are served without it.
    let is_ended = object.name == topology.ended_queue();
    let nothing = if is_ended { "no endings" } else { "nothing" };
    let check = match &object.state {
        ObjectState::Matches => return None,
        // One check lists all missing objects: before the first worker runs, everything is missing.
        ObjectState::Missing if declare => return None,
        ObjectState::Missing => {
            let what = format!("{what} does not exist, and HANDOFF_DECLARE_TOPOLOGY is false");
            Check::finding(kind, what)
                .cost(format!("the worker consumes {nothing} until it exists"))
                .remedy("create it as the reference says, or set HANDOFF_DECLARE_TOPOLOGY=true")
        }
        ObjectState::Differs(differences) => {
            let list: Vec<_> = differences.iter().map(Difference::to_string).collect();
            let what = format!("{what} differs: {}", list.join("; "));
            match object.kind {
                ObjectKind::Queue => differing_queue(what, differences, declare)
                    .remedy(
                        "stop the workers, check that the queue is empty, and delete it; the next worker \
                         declares it again",
                    )
                    .command(format!("{ctl} list_queues name messages"))
                    .command(format!("{ctl} delete_queue {}", quoted(&object.name))),
                ObjectKind::Exchange => Check::new(kind, verdict, what)
                    .cost(if declare {
                        "the worker consumes nothing, because it cannot declare the exchange"
                    } else {
                        "messages published to it may reach no queue, or the wrong queues"
                    })
                    .remedy(
                        "delete it, or set another name in HANDOFF_REQUEST_EXCHANGE or \
                         HANDOFF_EVENT_EXCHANGE",
                    ),
            }
        }
        ObjectState::Unknown(why) => {
            let what = format!("{what} exists, but cannot be compared: {why}");
            Check::new(kind, verdict, what)
                .cost(if declare {
                    "the worker consumes nothing, because it may not declare it"
                } else {
                    "a queue of the wrong type stays unnoticed"
                })
                .remedy("give the user the configure permission, or compare it by hand")
                .command(format!(
                    "rabbitmqctl set_permissions --vhost {vhost} USER CONFIGURE WRITE READ"
                ))
                .command(format!("{ctl} list_queues name type durable arguments"))
        }
    };
    Some(check)
}

/// A queue that is not replicated is a finding in any case.
fn differing_queue(what: String, differences: &[Difference], declare: bool) -> Check {
    let is_replicated =
        !differences.iter().any(|one| matches!(one.name.as_str(), "x-queue-type" | "durable"));
    let (verdict, cost) = if !is_replicated {
        let cost = "if a node fails, its messages are lost; dead letters can be lost at any time";
        (Verdict::Finding, cost)
    } else if declare {
        (Verdict::Finding, "the worker consumes nothing, because it cannot declare the queue")
    } else {
        (Verdict::Hint, "the worker uses it as it is; the reference explains each argument")
    };
    Check::new("queue", verdict, what).cost(cost)
}

/// Redeliveries of a dead letter that no operator reaches by hand.
const DEAD_QUEUE_LIMIT: u32 = 1_000_000_000;

/// Lists what AMQP does not show, with the commands that show it.
pub(super) fn invisible(
    vhost: &str,
    topology: &Topology,
    properties: Option<&ServerProperties>,
) -> Check {
    let ctl = format!("rabbitmqctl --vhost {}", quoted(vhost));
    let check = Check::hint(
        "not seen",
        "AMQP does not show policies, bindings (which queues receive requests and events), RabbitMQ's settings, or \
         expired messages that do not leave a retry queue",
    )
    .cost(
        "a policy can drop requests early; an event that no queue receives is a failed attempt; workers of a second \
         request queue serve each request again; large messages can take more memory than a worker has; requests \
         that are stuck in a retry queue are late",
    )
    .remedy(format!(
        "check that no policy sets message-ttl, expires, max-length or a lower delivery-limit; that a queue \
         is bound to `{}` for each event; that `{}`, and no other request queue, is bound to `{}`; that \
         max_message_size is small (1 MiB: the default is 16 MiB, 128 MiB before RabbitMQ 4); and, before \
         RabbitMQ 3.12, that consumer_timeout is above 17 min; and that `messages` and `messages_ready` of \
         each retry queue are equal (RabbitMQ's plugin rabbitmq_prometheus shows the same to the alert \
         HandoffRetriesStuck)",
        topology.event_exchange,
        topology.request_queue(),
        topology.request_exchange,
    ))
    .command(format!("{ctl} list_policies"))
    .command(format!("{ctl} list_operator_policies"))
    .command(format!("{ctl} list_bindings source_name destination_name routing_key"))
    .command(format!("{ctl} list_queues name messages messages_ready"))
    .command("rabbitmqctl environment | grep -e consumer_timeout -e max_message_size");
    // RabbitMQ 4 limits every quorum queue to 20 redeliveries. The dead queue has no dead-letter
    // exchange, so RabbitMQ would then drop its messages. The limit is large, and not -1: RabbitMQ 4.0 and
    // 4.1 apply a policy of -1 again every 5 s (rabbitmq-server#14202), and up to 4.2 it has no effect
    // (fixed by rabbitmq-server#16035).
    let limits_redeliveries =
        properties.is_some_and(|properties| !properties.version.starts_with("3."));
    if limits_redeliveries {
        let pattern = quoted(&format!("^{}$", topology.dead_queue().replace('.', r"\.")));
        check.command(format!(
            "{ctl} set_policy handoff-dead {pattern} '{{\"delivery-limit\":{DEAD_QUEUE_LIMIT}}}' --apply-to queues"
        ))
    } else {
        check
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerSettings;

    fn invisible_on(version: &str) -> Check {
        let topology = Topology::new(&BrokerSettings::defaults().unwrap());
        let properties = ServerProperties {
            product: "RabbitMQ".to_owned(),
            version: version.to_owned(),
            mechanisms: "PLAIN".to_owned(),
        };
        invisible("/", &topology, Some(&properties))
    }

    #[test]
    fn stuck_retries_are_named_with_the_command_that_shows_them() {
        let check = format!("{:?}", invisible_on("3.10.8"));
        for text in [
            "expired messages that do not leave a retry queue",
            "`messages` and `messages_ready` of each retry queue are equal",
            "HandoffRetriesStuck",
            "list_queues name messages messages_ready",
        ] {
            assert!(check.contains(text), "{text} is not in {check}");
        }
    }

    #[test]
    fn delivery_limit_of_the_dead_queue_is_large_and_finite() {
        let limit = DEAD_QUEUE_LIMIT.to_string();
        let newer = format!("{:?}", invisible_on("4.1.0"));
        assert!(newer.contains("set_policy handoff-dead") && newer.contains(&limit), "{newer}");
        assert!(!format!("{:?}", invisible_on("3.13.7")).contains("set_policy"));
    }
}
