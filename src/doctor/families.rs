//! Queues of another name: a second family serves each request again, a former one fills up.
//!
//! AMQP shows queues by name only, and no bindings. So the names to look for are the default one, if
//! HANDOFF_QUEUE is another, and those given to the command.

use super::{check::Check, format::quoted};
use crate::{
    broker::{BrokerError, QueueCounts, Topology, TopologySurvey},
    config::BrokerSettings,
};

const NAME: &str = "other queues";

/// The queues named after another request queue.
struct Family {
    request_queue: String,
    /// Whether it probably has the same request exchange as the worker.
    is_rival: bool,
    request: Option<QueueCounts>,
    ended: Option<QueueCounts>,
    dead: Option<QueueCounts>,
}

/// Looks for the queues of the default name, and of each name in `former`.
pub(super) async fn examine(
    survey: &TopologySurvey,
    former: &[String],
    checks: &mut Vec<Check>,
) -> Result<(), BrokerError> {
    let own = &survey.topology;
    let mut names: Vec<_> = former.iter().map(|name| (name.clone(), true)).collect();
    if let Ok(defaults) = BrokerSettings::defaults()
        && !former.contains(&defaults.queue)
    {
        // With another request exchange as well, the default queue belongs to another deployment.
        let is_rival = defaults.request_exchange == own.request_exchange;
        names.push((defaults.queue, is_rival));
    }
    names.retain(|(name, _)| name != own.request_queue());
    for (request_queue, is_rival) in names {
        let family = Family {
            is_rival,
            request: survey.look_up(&request_queue).await?,
            ended: survey.look_up(&format!("{request_queue}.ended")).await?,
            dead: survey.look_up(&format!("{request_queue}.dead")).await?,
            request_queue,
        };
        checks.extend(family.check(own, &survey.vhost()));
    }
    Ok(())
}

impl Family {
    /// `None` if the family does not exist or does no harm.
    fn check(&self, own: &Topology, vhost: &str) -> Option<Check> {
        let Self { request_queue, is_rival, .. } = self;
        let exchange = &own.request_exchange;
        let bound: Vec<_> = [self.request, self.ended].into_iter().flatten().collect();
        let dead_letters = self.dead.map_or(0, |counts| counts.messages);
        let what = format!("queues of another family exist: {}", self.describe());
        let ctl = format!("rabbitmqctl --vhost {}", quoted(vhost));
        let bindings = format!("{ctl} list_bindings source_name destination_name routing_key");
        if bound.iter().any(|counts| counts.consumers > 0) {
            let cost = format!(
                "if `{request_queue}` is bound to `{exchange}` too, each request is served twice: two events, and \
                 two sessions unless both families share a Redis and HANDOFF_KEY_PREFIX"
            );
            let remedy = "give each deployment a HANDOFF_REQUEST_EXCHANGE or a virtual host of its own; after a \
                          rename, stop the workers of the former name once its queues are empty, and delete them";
            let check = Check::finding(NAME, what).cost(cost).remedy(remedy).command(bindings);
            return is_rival.then(|| check.command(format!("{ctl} list_consumers")));
        }
        let check = if *is_rival && bound.iter().any(|counts| counts.messages > 0) {
            Check::finding(NAME, what)
        } else if *is_rival && !bound.is_empty() || self.holds_messages() {
            Check::hint(NAME, what)
        } else {
            return None;
        };
        let delete = |suffix: &str| {
            format!("{ctl} delete_queue {}", quoted(&format!("{request_queue}{suffix}")))
        };
        let mut check = check
            .cost(format!(
                "while they are bound to `{exchange}`, each new message is copied to them, and no worker consumes it"
            ))
            .remedy(
                "if people still wait for what is in them, run a worker with this HANDOFF_QUEUE until they are \
                 empty; then delete them, which also removes their bindings",
            )
            .command(bindings);
        if dead_letters > 0 {
            let list = format!("handoff dead-letters list --queue {}", quoted(request_queue));
            check = check.command(list);
        }
        Some(check.command(delete("")).command(delete(".ended")))
    }

    fn holds_messages(&self) -> bool {
        [self.request, self.ended, self.dead]
            .into_iter()
            .flatten()
            .any(|counts| counts.messages > 0)
    }

    fn describe(&self) -> String {
        let named = [("", self.request), (".ended", self.ended), (".dead", self.dead)];
        let named = named.into_iter().filter_map(|(suffix, counts)| {
            let QueueCounts { messages, consumers } = counts?;
            let name = format!("`{}{suffix}`", self.request_queue);
            Some(format!("{name} (messages: {messages}, consumers: {consumers})"))
        });
        named.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn check(is_rival: bool, messages: u32, consumers: u32) -> Option<Verdict> {
        let counts = Some(QueueCounts { messages, consumers });
        let request_queue = "former".to_owned();
        let family = Family { request_queue, is_rival, request: counts, ended: None, dead: None };
        let own = Topology::new(&BrokerSettings::defaults().unwrap());
        family.check(&own, "/").map(|check| check.verdict)
    }

    #[test]
    fn second_family_is_a_finding_if_it_consumes_or_fills_up() {
        assert_eq!(check(true, 0, 2), Some(Verdict::Finding));
        assert_eq!(check(true, 3, 0), Some(Verdict::Finding));
        assert_eq!(check(true, 0, 0), Some(Verdict::Hint));
    }

    #[test]
    fn family_of_another_exchange_is_at_most_a_hint() {
        assert_eq!(check(false, 5, 2), None);
        assert_eq!(check(false, 3, 0), Some(Verdict::Hint));
        assert_eq!(check(false, 0, 0), None);
    }
}
