//! RabbitMQ: whether it can be reached, fits, and accepts messages.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::{
    certificate::Expiry,
    check::Check,
    connect::connect,
    families,
    format::quoted,
    stream::Stream,
    topology::{check_object, invisible},
};
use crate::{
    broker::{ObjectState, QueueCounts, ServerProperties, TopologySurvey, server_properties},
    config::{AmqpNode, AmqpNodes, Settings},
    tls,
};

/// The SASL mechanism of a login by client certificate.
const EXTERNAL: &str = "EXTERNAL";
const SERVER_PROPERTIES_LIMIT: Duration = Duration::from_secs(2);
/// The consumer time-out that the worker asks for, and RabbitMQ's default.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Time to publish an event and its copy, with a margin.
const SETTLING: Duration = Duration::from_secs(60);
/// A longer backlog is a hint: this many waiting requests per request in flight.
const LONG_BACKLOG: u32 = 100;

pub(super) async fn examine(
    settings: &Settings,
    former: &[String],
    checks: &mut Vec<Check>,
) -> Result<(), Check> {
    let nodes = settings.broker.nodes.current();
    checks.extend(client_certificate(&nodes));
    let properties = reach(&nodes, checks).await?;
    checks.extend([version(properties.as_ref()), consumer_timeout(settings)]);
    if let Some(finding) = missing_mechanism(&nodes, properties.as_ref()) {
        return Err(finding);
    }
    let survey = TopologySurvey::open(&settings.broker).await.map_err(|error| {
        let check = Check::finding("login", error.to_string())
            .cost("no request is served until the login succeeds");
        let check = if mechanism(&nodes) == EXTERNAL {
            check
                .remedy(
                    "give the client certificate's name a user (by default the whole subject, such as \
                     CN=handoff), or set ssl_cert_login_from in rabbitmq.conf; RabbitMQ's log says which",
                )
                .command("rabbitmqctl list_users")
        } else {
            check
                .remedy(format!(
                    "check user, password and virtual host in {}",
                    settings.broker.nodes.describe()
                ))
                .command("rabbitmqctl authenticate_user USER")
        };
        check.command("rabbitmqctl list_user_permissions USER")
    })?;
    let vhost = survey.vhost();
    checks.push(Check::ok("login", format!("the user may access the virtual host {vhost}")));
    check_topology(&survey, settings, checks).await;
    if let Err(error) = families::examine(&survey, former, checks).await {
        checks.push(
            Check::finding("other queues", error.to_string())
                .cost("queues of another name could not be looked for"),
        );
    }
    checks.push(publishing(&survey).await);
    checks.push(invisible(&vhost, &survey.topology, properties.as_ref()));
    survey.close().await;
    Ok(())
}

/// Connects to each node, and returns what a node that answers says of itself.
async fn reach(
    nodes: &AmqpNodes,
    checks: &mut Vec<Check>,
) -> Result<Option<ServerProperties>, Check> {
    let mut properties = None;
    let mut unreachable = Vec::new();
    let count = nodes.nodes().len();
    for (index, url) in nodes.nodes().iter().map(AmqpNode::address).enumerate() {
        let Some(url) = url else { continue };
        let name = match count {
            1 => "RabbitMQ".to_owned(),
            _ => format!("RabbitMQ's node {} of {count}", index + 1),
        };
        let connected = connect(&name, &url, 5672, None, nodes.identity(), checks).await;
        let greeted = match connected {
            Ok(stream) => greeting(&name, stream, url.scheme() == "amqps").await,
            Err(finding) => Err(finding),
        };
        match greeted {
            Ok(greeting) => properties = properties.or(greeting),
            Err(finding) => unreachable.push(finding.or_remedy(
                "check that RabbitMQ is running, that host and port in HANDOFF_AMQP_URL are right, and that \
                 no firewall blocks the connection",
            )),
        }
    }
    let cost = if unreachable.len() < count {
        "fewer nodes are left when another one fails"
    } else {
        "no request is served until RabbitMQ can be reached"
    };
    let mut unreachable: Vec<_> = unreachable.into_iter().map(|check| check.cost(cost)).collect();
    match unreachable.pop() {
        Some(last) if unreachable.len() + 1 == count => {
            checks.extend(unreachable);
            Err(last)
        }
        last => {
            checks.extend(unreachable.into_iter().chain(last));
            Ok(properties)
        }
    }
}

/// Waits for the first frame of a node. The finding says that the node refuses the client certificate.
async fn greeting(
    name: &str,
    stream: Box<dyn Stream>,
    is_tls: bool,
) -> Result<Option<ServerProperties>, Check> {
    let greeting = timeout(SERVER_PROPERTIES_LIMIT, server_properties(stream)).await;
    let Ok(Err(error)) = greeting else { return Ok(greeting.ok().and_then(Result::ok).flatten()) };
    // The alert is lost if the first bytes were written before it arrived.
    let lost = "it closed the connection after the TLS handshake. RabbitMQ may require a client certificate \
                or have refused the one presented: see its log";
    match tls::explain(&error).or_else(|| is_tls.then_some(lost)) {
        Some(why) => {
            let what = format!("cannot connect to {name}: {why}");
            Err(Check::finding("connection", what).remedy(
                "the network connection works: correct the certificates that the finding names",
            ))
        }
        None => Ok(None),
    }
}

/// How long the client certificate is still valid.
fn client_certificate(nodes: &AmqpNodes) -> Option<Check> {
    let expiry = Expiry::of(nodes.identity()?.chain())?;
    Some(Check { name: "client certificate", ..expiry.check(SystemTime::now()) })
}

/// The SASL mechanism of the first node; several nodes have the same users.
fn mechanism(nodes: &AmqpNodes) -> &'static str {
    nodes.nodes().first().map_or("PLAIN", |node| nodes.mechanism(node).name())
}

/// The finding that RabbitMQ does not offer the way to log in. It then closes the connection without an answer.
fn missing_mechanism(nodes: &AmqpNodes, properties: Option<&ServerProperties>) -> Option<Check> {
    let offered = &properties?.mechanisms;
    let needed = mechanism(nodes);
    if offered.split_whitespace().any(|mechanism| mechanism == needed) {
        return None;
    }
    let what = format!("RabbitMQ does not offer the SASL mechanism {needed}, only: {offered}");
    let finding = Check::finding("login", what).cost("no request is served").remedy(format!(
        "add {needed} to the list in rabbitmq.conf (auth_mechanisms.1 = PLAIN, auth_mechanisms.2 = EXTERNAL), \
         and restart RabbitMQ"
    ));
    Some(if needed == EXTERNAL {
        finding.command("rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl")
    } else {
        finding
    })
}

fn version(properties: Option<&ServerProperties>) -> Check {
    let Some(ServerProperties { product, version, .. }) = properties else {
        return Check::finding("version", "the server says nothing in AMQP 0-9-1")
            .cost("no request is served")
            .remedy("check that host and port in HANDOFF_AMQP_URL lead to RabbitMQ");
    };
    if product != "RabbitMQ" {
        let what = format!("the server is {product} {version}, not RabbitMQ");
        return Check::hint("version", what).cost(
            "this combination is untested; the worker needs quorum queues and at-least-once \
             dead-lettering",
        );
    }
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    if let (Some(major), Some(minor)) = (numbers.next(), numbers.next())
        && (major, minor) < (3, 10)
    {
        return Check::finding("version", format!("RabbitMQ {version} is older than 3.10"))
            .cost("dead letters can be lost: at-least-once dead-lettering needs 3.10")
            .remedy("upgrade RabbitMQ to 3.10 or later");
    }
    Check::ok("version", format!("{product} {version}"))
}

/// Compares how long the worker may hold a request with the consumer time-out.
fn consumer_timeout(settings: &Settings) -> Check {
    let longest = settings.worker.hold_limit + 2 * settings.platform.timeout + SETTLING;
    let minutes = longest.as_secs().div_ceil(60);
    if longest < CONSUMER_TIMEOUT {
        let what = format!(
            "the worker holds a request for at most {minutes} min, and asks RabbitMQ for 30 min (before 3.12, \
             its consumer_timeout applies, which AMQP does not show)"
        );
        return Check::ok("consumer time-out", what);
    }
    let what =
        format!("the worker may hold a request for {minutes} min, and asks RabbitMQ for 30 min");
    Check::finding("consumer time-out", what)
        .cost("RabbitMQ closes the worker's channel and redelivers its requests")
        .remedy(format!(
            "shorten HANDOFF_IDV_TIMEOUT; before RabbitMQ 3.12 you may set consumer_timeout = {} in \
             rabbitmq.conf instead",
            (longest + SETTLING).as_millis()
        ))
}

async fn check_topology(survey: &TopologySurvey, settings: &Settings, checks: &mut Vec<Check>) {
    let objects = match survey.objects().await {
        Ok(objects) => objects,
        Err(error) => {
            let check = Check::finding("topology", error.to_string());
            return checks.push(check.cost("exchanges and queues could not be checked"));
        }
    };
    let declare = settings.broker.declare;
    let vhost = survey.vhost();
    let topology = &survey.topology;
    let mismatch = |object| check_object(object, topology, declare, &vhost);
    let mismatches: Vec<_> = objects.iter().filter_map(mismatch).collect();
    let missing: Vec<_> = objects
        .iter()
        .filter(|object| object.state == ObjectState::Missing)
        .map(|object| format!("`{}`", object.name))
        .collect();
    if declare && !missing.is_empty() {
        let what = format!("the worker will declare when it starts: {}", missing.join(", "));
        checks.push(
            Check::hint("topology", what).cost("they do not exist yet: nothing can use them"),
        );
    } else if mismatches.is_empty() {
        let what = format!("all {} exchanges and queues match", objects.len());
        checks.push(Check::ok("topology", what));
    }
    checks.extend(mismatches);
    let counts = |name: &str| objects.iter().find(|object| object.name == name)?.counts;
    checks.extend(counts(topology.request_queue()).map(|counts| consumers(counts, settings)));
    checks.extend(counts(topology.dead_queue()).map(|counts| dead_letters(counts.messages)));
}

async fn publishing(survey: &TopologySurvey) -> Check {
    match survey.check_publishing().await {
        Ok(()) => Check::ok("publishing", "RabbitMQ accepts and confirms messages"),
        Err(error) => Check::finding("publishing", error.to_string())
            .cost("events, retry copies and dead letters are not published, so no request finishes")
            .remedy(
                "check whether RabbitMQ is short of memory or disk, and whether the user may write to \
                 amq.default",
            )
            .command("rabbitmq-diagnostics alarms")
            .command(format!("rabbitmqctl list_permissions --vhost {}", quoted(&survey.vhost()))),
    }
}

fn consumers(counts: QueueCounts, settings: &Settings) -> Check {
    let QueueCounts { messages, consumers } = counts;
    let long_backlog = LONG_BACKLOG * u32::from(settings.worker.concurrency) * consumers;
    match (consumers, messages) {
        (0, 0) => Check::hint("consumers", "the request queue has no consumer; no request waits")
            .cost("a new request would wait")
            .remedy("start a worker: handoff run"),
        (0, _) => {
            let what = format!("the request queue has no consumer; requests that wait: {messages}");
            Check::finding("consumers", what)
                .cost("the requests wait until a worker starts")
                .remedy(
                    "start a worker: handoff run. If one is running, its /readyz shows what fails",
                )
        }
        _ if messages > long_backlog => {
            let what = format!("requests that wait: {messages}; consumers: {consumers}");
            Check::hint("consumers", what).cost("links are late").remedy(
                "start more workers; handoff_platform_calls_total shows whether the platform is the bottleneck",
            )
        }
        _ => {
            let what = format!("consumers: {consumers}; requests that wait: {messages}");
            Check::ok("consumers", what)
        }
    }
}

fn dead_letters(count: u32) -> Check {
    if count == 0 {
        return Check::ok("dead letters", "the dead queue is empty");
    }
    Check::hint("dead letters", format!("requests in the dead queue: {count}"))
        .cost("the people behind these requests have no link")
        .remedy("inspect them, then replay or drop them")
        .command("handoff dead-letters list")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    fn of(product: &str, version: &str) -> Verdict {
        let greeting = ServerProperties {
            product: product.to_owned(),
            version: version.to_owned(),
            mechanisms: "PLAIN".to_owned(),
        };
        super::version(Some(&greeting)).verdict
    }

    #[test]
    fn version_is_compared_by_number() {
        for (version, verdict) in [
            ("3.9.29", Verdict::Finding),
            ("3.8.0-rc.1", Verdict::Finding),
            ("3.10.0", Verdict::Ok),
            ("3.13.7", Verdict::Ok),
            ("4.0.0-beta.1", Verdict::Ok),
            ("10.0", Verdict::Ok),
        ] {
            assert_eq!(of("RabbitMQ", version), verdict, "{version}");
        }
        assert_eq!(of("LavinMQ", "2.0"), Verdict::Hint);
        assert_eq!(super::version(None).verdict, Verdict::Finding);
    }
}
