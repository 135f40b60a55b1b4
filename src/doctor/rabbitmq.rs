//! RabbitMQ, as far as AMQP tells.

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use tokio::time::timeout;
use url::Url;

use super::{
    Check, certificate, quoted,
    reach::reach,
    span,
    topology::{object, unseen},
};
use crate::{
    broker::{ObjectState, QueueCounts, ServerProperties, TopologySurvey, server_properties},
    config::Settings,
};

const GREETING_LIMIT: Duration = Duration::from_secs(2);
/// What RabbitMQ grants a consumer by default.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Publishing an event, its copy, and some slack.
const SETTLING: Duration = Duration::from_secs(60);
/// So many waiting for each that may be in flight are worth a word.
const MANY: u32 = 100;

pub(super) async fn examine(settings: &Settings, checks: &mut Vec<Check>) {
    let config = &settings.broker;
    let Ok(url) = Url::parse(config.url.expose_secret()) else { return };
    let port = if url.scheme() == "amqps" { 5671 } else { 5672 };
    let reached = match reach(&url, port).await {
        Ok(reached) => reached,
        Err(why) => {
            checks.push(
                Check::finding("connection", format!("RabbitMQ cannot be reached: {why}"))
                    .costs("no request is served until it can")
                    .mend("is it running, do host and port of HANDOFF_AMQP_URL lead there, is a firewall between?"),
            );
            return;
        }
    };
    checks.push(Check::ok("connection", format!("reached in {}", span(reached.took))));
    checks.extend(certificate::check(reached.certified_until, SystemTime::now()));
    let greeted = timeout(GREETING_LIMIT, server_properties(reached.stream)).await.ok().flatten();
    checks.push(version(greeted.as_ref()));
    checks.push(consumer_timeout(settings));
    match TopologySurvey::open(config).await {
        Ok(survey) => {
            checks.push(Check::ok("login", format!("may use the virtual host {}", survey.vhost())));
            look_around(&survey, settings, checks).await;
            checks.push(unseen(&survey.vhost(), survey.topology(), greeted.as_ref()));
            survey.close().await;
        }
        Err(error) => checks.push(
            Check::finding("login", error.to_string())
                .costs("no request is served until it works")
                .mend("check user, password and virtual host of HANDOFF_AMQP_URL")
                .run("rabbitmqctl authenticate_user USER")
                .run("rabbitmqctl list_user_permissions USER"),
        ),
    }
}

fn version(greeting: Option<&ServerProperties>) -> Check {
    let Some(ServerProperties { product, version }) = greeting else {
        return Check::finding("version", "what is there says nothing in AMQP 0-9-1")
            .costs("no request is served")
            .mend("do host and port of HANDOFF_AMQP_URL lead to RabbitMQ?");
    };
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let number = (numbers.next(), numbers.next());
    match number {
        _ if product != "RabbitMQ" => {
            Check::hint("version", format!("it is {product} {version}, not RabbitMQ")).costs(
                "nobody has tried that; quorum queues and at-least-once dead-lettering are needed",
            )
        }
        (Some(major), Some(minor)) if (major, minor) < (3, 10) => {
            Check::finding("version", format!("it is RabbitMQ {version}; 3.10 or later is needed"))
                .costs("dead letters can be lost: at-least-once dead-lettering came with 3.10")
                .mend("upgrade RabbitMQ")
        }
        _ => Check::ok("version", format!("{product} {version}")),
    }
}

/// How long a request may be kept at most, against how long RabbitMQ lets it be kept.
fn consumer_timeout(settings: &Settings) -> Check {
    let longest = settings.worker.hold_limit + 2 * settings.platform.timeout + SETTLING;
    let minutes = longest.as_secs().div_ceil(60);
    match longest < CONSUMER_TIMEOUT {
        true => Check::ok(
            "consumer time-out",
            format!(
                "a request is kept for {minutes} min at most; RabbitMQ allows 30 by default (its \
                 consumer_timeout cannot be seen over AMQP)"
            ),
        ),
        false => Check::finding(
            "consumer time-out",
            format!("a request may be kept for {minutes} min, and RabbitMQ allows 30 by default"),
        )
        .costs("RabbitMQ takes the worker for dead and delivers its requests again")
        .mend(format!(
            "a shorter HANDOFF_IDV_TIMEOUT, or consumer_timeout = {} in rabbitmq.conf",
            (longest + SETTLING).as_millis()
        )),
    }
}

async fn look_around(survey: &TopologySurvey, settings: &Settings, checks: &mut Vec<Check>) {
    let config = &settings.broker;
    match survey.objects().await {
        Ok(objects) => {
            let vhost = survey.vhost();
            let all = objects.len();
            let wrong: Vec<_> =
                objects.iter().filter_map(|found| object(found, config, &vhost)).collect();
            let missing = objects.iter().filter(|found| found.state == ObjectState::Missing);
            let missing: Vec<_> = missing.map(|found| format!("`{}`", found.name)).collect();
            if config.declare && !missing.is_empty() {
                let what = format!("a worker will declare when it starts: {}", missing.join(", "));
                checks.push(
                    Check::hint("topology", what)
                        .costs("they do not exist; until then nobody can use them"),
                );
            } else if wrong.is_empty() {
                checks.push(Check::ok("topology", format!("all {all} exchanges and queues fit")));
            }
            checks.extend(wrong);
            let traffic = |name: &str| objects.iter().find(|found| found.name == name)?.counts;
            let topology = survey.topology();
            checks.extend(traffic(topology.request_queue()).map(|t| requests(t, settings)));
            checks.extend(traffic(topology.dead_queue()).map(|t| dead_letters(t.messages)));
        }
        Err(error) => checks.push(
            Check::finding("topology", error.to_string())
                .costs("nothing is known about exchanges and queues"),
        ),
    }
    checks.push(match survey.check_publishing().await {
        Ok(()) => Check::ok("publishing", "messages are taken and confirmed"),
        Err(error) => Check::finding("publishing", error.to_string())
            .costs("no event, retry copy or dead letter gets through, so no request is finished")
            .mend("see whether it is short of memory or disk, and whether the user may write to amq.default")
            .run("rabbitmq-diagnostics alarms")
            .run(format!("rabbitmqctl list_permissions --vhost {}", quoted(&survey.vhost()))),
    });
}

fn requests(traffic: QueueCounts, settings: &Settings) -> Check {
    let QueueCounts { messages, consumers } = traffic;
    match traffic {
        QueueCounts { consumers: 0, messages: 0 } => {
            Check::hint("consumers", "nobody takes requests; none waits")
                .costs("a request would wait")
                .mend("start a worker: handoff run")
        }
        QueueCounts { consumers: 0, .. } => {
            Check::finding("consumers", format!("nobody takes requests, and {messages} wait"))
                .costs("they wait until somebody does")
                .mend("start a worker: handoff run; if one runs, its /readyz says what holds it up")
        }
        _ if messages > MANY * u32::from(settings.worker.concurrency) * consumers => {
            Check::hint("consumers", format!("{messages} requests wait for {consumers} consumers"))
                .costs("links come late")
                .mend("start more workers; handoff_platform_calls_total says whether the platform holds them up")
        }
        _ => Check::ok("consumers", format!("consumers: {consumers}; requests that wait: {messages}")),
    }
}

fn dead_letters(count: u32) -> Check {
    match count {
        0 => Check::ok("dead letters", "there are none"),
        n => Check::hint("dead letters", format!("requests that could not be served: {n}"))
            .costs("these people have no link")
            .mend("look at them, then replay or drop them")
            .run("handoff dead-letters list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn of(product: &str, version: &str) -> Verdict {
        let greeting =
            ServerProperties { product: product.to_owned(), version: version.to_owned() };
        super::version(Some(&greeting)).verdict
    }

    #[test]
    fn versions_are_compared_by_number() {
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
