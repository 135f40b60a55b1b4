//! The platform: whether it can be reached, and on request whether it accepts the API key.

use std::{
    env,
    time::{Duration, SystemTime},
};

use time::OffsetDateTime;

use super::{
    check::{Check, Tolerance},
    clock,
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

pub(super) async fn examine(
    settings: &PlatformSettings,
    probe: Probe,
    checks: &mut Vec<Check>,
) -> Result<(), Check> {
    if uses_proxy(settings) {
        let what = "the platform is reached through a proxy, which is tested only with --probe";
        checks.push(Check::hint("connection", what).command("handoff doctor --probe"));
    } else {
        connect("the platform", &settings.url, 443, checks).await.map_err(|finding| {
            finding.cost("requests are held until the platform can be reached").remedy(
                "check HANDOFF_IDV_URL, whether a firewall blocks the connection, and whether this machine \
                 needs a proxy (HTTPS_PROXY)",
            )
        })?;
    }
    if probe == Probe::Token {
        return request_token(settings, checks).await;
    }
    let what = "not tested: --probe requests one token with the shortest lifetime";
    checks.push(Check::ok("key", what));
    Ok(())
}

/// Whether the environment names a proxy that the worker would use.
fn uses_proxy(settings: &PlatformSettings) -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    settings.url.scheme() == "https"
        && !is_loopback(&settings.url)
        && ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(is_set)
}

async fn request_token(settings: &PlatformSettings, checks: &mut Vec<Check>) -> Result<(), Check> {
    let platform = PlatformClient::new(settings, None, Metrics::new())
        .map_err(|error| Check::finding("key", error.to_string()).cost("no request is served"))?;
    let (answer, date) = platform.probe().await;
    let now = SystemTime::now();
    checks.push(match answer {
        Ok(()) => Check::ok("key", "the platform accepts it"),
        Err(error) => Check::finding("key", error.to_string())
            .cost("requests are held until the platform accepts the key")
            .remedy(
                "give the key the permission `Ephemeral Devices: Write`; test the key and the URL with curl",
            ),
    });
    checks.extend(date.map(|date| {
        let ahead = OffsetDateTime::from(date) - OffsetDateTime::from(now);
        clock::check("the platform's", ahead.whole_milliseconds(), &TOLERANCE)
    }));
    Ok(())
}
