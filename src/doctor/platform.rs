//! The platform: whether it can be reached, and on request whether it accepts the API key.

use std::{
    env,
    time::{Duration, SystemTime},
};

use super::{
    check::Check,
    clock::{self, Tolerance},
    connect::connect,
};
use crate::{
    config::{PlatformSettings, is_loopback},
    platform::PlatformClient,
    telemetry::metrics::Metrics,
};

/// HTTP's `Date` header has a resolution of one second, and is older by the time of the answer.
const TOLERANCE: Tolerance =
    Tolerance { hint: Duration::from_secs(5), finding: Duration::from_secs(60) };

/// Whether to call the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Only connect.
    Connect,
    /// Request one token with the shortest lifetime, to test the API key.
    Token,
}

pub(super) async fn examine(settings: &PlatformSettings, probe: Probe, checks: &mut Vec<Check>) {
    if uses_proxy(settings) {
        checks.push(
            Check::hint(
                "connection",
                "the platform is reached through a proxy, which is tested only with --probe",
            )
            .command("handoff doctor --probe"),
        );
    } else {
        match connect(&settings.url, 443).await {
            Ok(connected) => checks.extend(connected.checks()),
            Err(why) => {
                checks.push(
                    Check::finding("connection", format!("cannot connect to the platform: {why}"))
                        .cost("requests are held until the platform can be reached")
                        .remedy(
                            "check HANDOFF_IDV_URL, whether a firewall blocks the connection, and whether \
                             this machine needs a proxy (HTTPS_PROXY)",
                        ),
                );
                return;
            }
        }
    }
    match probe {
        Probe::Token => checks.extend(request_token(settings).await),
        Probe::Connect => {
            let what = "not tested: --probe requests one token with the shortest lifetime";
            checks.push(Check::ok("key", what));
        }
    }
}

/// Whether the environment names a proxy that the worker would use.
fn uses_proxy(settings: &PlatformSettings) -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    settings.url.scheme() == "https"
        && !is_loopback(&settings.url)
        && ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(is_set)
}

async fn request_token(settings: &PlatformSettings) -> Vec<Check> {
    let platform = match PlatformClient::new(settings, None, Metrics::new()) {
        Ok(platform) => platform,
        Err(error) => {
            return vec![Check::finding("key", error.to_string()).cost("no request is served")];
        }
    };
    let (answer, date) = platform.probe().await;
    let now = SystemTime::now();
    let key = match answer {
        Ok(()) => Check::ok("key", "the platform accepts it"),
        Err(error) => Check::finding("key", error.to_string())
            .cost("requests are held until the platform accepts the key")
            .remedy(
                "give the key the permission `Ephemeral Devices: Write`; test the key and the URL with curl",
            ),
    };
    let clock = date.map(|date| clock::check("the platform's", ahead_ms(date, now), &TOLERANCE));
    [key].into_iter().chain(clock).collect()
}

/// How far `date` is ahead of `now`, in milliseconds.
fn ahead_ms(date: SystemTime, now: SystemTime) -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match date.duration_since(now) {
        Ok(ahead) => millis(ahead),
        Err(error) => -millis(error.duration()),
    }
}
