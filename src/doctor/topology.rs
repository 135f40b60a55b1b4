//! Exchanges and queues: what does not fit, and what AMQP does not tell.

use super::{Check, quoted};
use crate::{
    broker::{Difference, ObjectKind, ObjectState, ServerProperties, SurveyedObject, Topology},
    config::BrokerSettings,
};

/// What is wrong with an exchange or a queue, if anything.
pub(super) fn object(
    found: &SurveyedObject,
    config: &BrokerSettings,
    vhost: &str,
) -> Option<Check> {
    let name = found.kind.as_str();
    let what = format!("the {name} `{}`", found.name);
    let vhost = quoted(vhost);
    // Where a worker declares nothing, it takes what it finds.
    let wrong = if config.declare { Check::finding } else { Check::hint };
    Some(match &found.state {
        ObjectState::Matches => return None,
        // Told together: before the first worker has run, it is all of them.
        ObjectState::Missing if config.declare => return None,
        ObjectState::Missing => Check::finding(
            name,
            format!("{what} does not exist, and HANDOFF_DECLARE_TOPOLOGY is false"),
        )
        .costs("a worker does not take requests until it exists")
        .mend("create it as the reference says, or set HANDOFF_DECLARE_TOPOLOGY=true"),
        ObjectState::Differs(differences) if found.kind == ObjectKind::Queue => differing_queue(
            found,
            differences,
            config.declare,
        )
        .mend("stop the workers, see that it is empty, and delete it; a worker declares it anew")
        .run(format!("rabbitmqctl --vhost {vhost} list_queues name messages"))
        .run(format!("rabbitmqctl --vhost {vhost} delete_queue {}", quoted(&found.name))),
        ObjectState::Differs(differences) => {
            wrong(name, format!("{what} is there, and is another: {}", listed(differences)))
                .costs(match config.declare {
                    true => "a worker does not take requests, since it cannot declare it",
                    false => "what is published there may reach nobody, or the wrong queues",
                })
                .mend("delete it, or rename ours: HANDOFF_REQUEST_EXCHANGE, HANDOFF_EVENT_EXCHANGE")
        }
        ObjectState::Unknown(why) => {
            wrong(name, format!("{what} is there; whether it fits cannot be told: {why}"))
                .costs(match config.declare {
                    true => "a worker does not take requests, since it may not declare it",
                    false => "a queue of the wrong type would go unnoticed",
                })
                .mend("give the user the configure permission, or look by hand")
                .run(format!(
                    "rabbitmqctl set_permissions --vhost {vhost} USER CONFIGURE WRITE READ"
                ))
                .run(format!("rabbitmqctl --vhost {vhost} list_queues name type durable arguments"))
        }
    })
}

/// A queue that is not replicated is wrong, whoever has declared it.
fn differing_queue(found: &SurveyedObject, differences: &[Difference], declare: bool) -> Check {
    let traits = ["x-queue-type", "durable"];
    let is_fragile = differences.iter().any(|one| traits.contains(&one.name.as_str()));
    let (verdict, cost): (fn(_, String) -> _, _) = match (is_fragile, declare) {
        (true, _) => (
            Check::finding,
            "a node that fails takes its messages along, and dead letters can be lost",
        ),
        (false, true) => {
            (Check::finding, "a worker does not take requests, since it cannot declare it")
        }
        (false, false) => {
            (Check::hint, "it is used as it is; the reference says what its arguments are for")
        }
    };
    let what =
        format!("the queue `{}` is not as it should be: {}", found.name, listed(differences));
    verdict("queue", what).costs(cost)
}

fn listed(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

/// What AMQP has no question for, with the commands that do.
pub(super) fn unseen(
    vhost: &str,
    topology: &Topology,
    greeting: Option<&ServerProperties>,
) -> Check {
    let ctl = format!("rabbitmqctl --vhost {}", quoted(vhost));
    let check = Check::hint(
        "not seen",
        "AMQP does not tell policies, bindings (whether anybody hears events) and RabbitMQ's own settings",
    )
    .costs("a policy can drop requests early; an event that nobody is bound to take is a failed attempt")
    .mend(format!(
        "see that no policy sets message-ttl, expires, max-length or a lower delivery-limit, that a queue is \
         bound to `{}` for each event, and `{}` to `{}`, and that consumer_timeout is above 17 min",
        topology.event_exchange(),
        topology.request_queue(),
        topology.request_exchange(),
    ))
    .run(format!("{ctl} list_policies"))
    .run(format!("{ctl} list_operator_policies"))
    .run(format!("{ctl} list_bindings source_name destination_name routing_key"))
    .run("rabbitmqctl environment | grep consumer_timeout");
    // There every quorum queue has a limit of 20, and the dead queue has nowhere to pass messages on to.
    let pattern = quoted(&format!("^{}$", topology.dead_queue().replace('.', r"\.")));
    match greeting.is_some_and(|greeting| !greeting.version.starts_with("3.")) {
        true => check.run(format!(
            "{ctl} set_policy handoff-dead {pattern} '{{\"delivery-limit\":-1}}' --apply-to queues"
        )),
        false => check,
    }
}
