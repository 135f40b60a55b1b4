//! The platform: whether it can be reached and, where that is asked for, whether it takes the key.

use std::{
    env,
    time::{Duration, SystemTime},
};

use super::{Check, certificate, reach::reach, span};
use crate::{
    config::{PlatformSettings, is_loopback},
    platform::PlatformClient,
    telemetry::metrics::Metrics,
};

/// HTTP tells the time to the second, and an answer takes its time.
const SKEW: Duration = Duration::from_secs(5);
const GREAT_SKEW: Duration = Duration::from_secs(60);

pub(super) async fn examine(settings: &PlatformSettings, probe: bool, checks: &mut Vec<Check>) {
    if by_proxy(settings) {
        checks.push(
            Check::hint(
                "connection",
                "it is reached through a proxy, which is only asked with --probe",
            )
            .run("handoff doctor --probe"),
        );
    } else {
        match reach(&settings.url, 443).await {
            Ok(reached) => {
                checks.push(Check::ok("connection", format!("reached in {}", span(reached.took))));
                checks.extend(certificate::check(reached.certified_until, SystemTime::now()));
            }
            Err(why) => {
                checks.push(
                    Check::finding("connection", format!("the platform cannot be reached: {why}"))
                        .costs("requests are held in RabbitMQ until it can")
                        .mend("is HANDOFF_IDV_URL right, may this machine go there, is a proxy needed (HTTPS_PROXY)?"),
                );
                return;
            }
        }
    }
    match probe {
        true => checks.extend(ask(settings).await),
        false => {
            checks.push(Check::ok("key", "not tried: --probe asks for one token of the least life"))
        }
    }
}

/// Whether a proxy is named that would be used.
fn by_proxy(settings: &PlatformSettings) -> bool {
    let named = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    settings.url.scheme() == "https"
        && !is_loopback(&settings.url)
        && ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(named)
}

/// Asks for a token, and drops it.
async fn ask(settings: &PlatformSettings) -> Vec<Check> {
    let platform = match PlatformClient::new(settings, None, Metrics::new()) {
        Ok(platform) => platform,
        Err(error) => {
            return vec![Check::finding("key", error.to_string()).costs("no request is served")];
        }
    };
    let (answer, date) = platform.probe().await;
    let now = SystemTime::now();
    let mut checks = vec![match answer {
        Ok(()) => Check::ok("key", "the platform gives a token for it"),
        Err(error) => Check::finding("key", error.to_string())
            .costs("requests are held in RabbitMQ until it gives one")
            .mend("the key needs the permission `Ephemeral Devices: Write`; try the key and the URL with curl"),
    }];
    checks.extend(date.map(|date| {
        let ahead = |later: SystemTime, earlier| {
            let by = later.duration_since(earlier).ok()?;
            i64::try_from(by.as_millis()).ok()
        };
        let ahead = ahead(date, now).or_else(|| Some(-ahead(now, date)?)).unwrap_or(0);
        super::skew("clock", "the platform's", ahead, SKEW, GREAT_SKEW)
    }));
    checks
}
