//! The platform: whether it can be reached, and on request whether it accepts the API key.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

use super::{
    check::{Check, Tolerance},
    clock,
    connect::connect,
};
use crate::{
    config::{Direct, PlatformSettings, Route},
    platform::{CallError, PlatformClient},
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
    if let Some(check) = bypassed_proxy(&settings.route) {
        checks.push(check);
    }
    let proxy = settings.route.proxy();
    connect("the platform", &settings.url, 443, proxy, None, checks).await.map_err(|finding| {
        finding.cost("requests are held until the platform can be reached").or_remedy(
            "check HANDOFF_IDV_URL, whether a firewall blocks the connection, and whether this machine needs \
             a proxy (HTTPS_PROXY)",
        )
    })?;
    if probe == Probe::Token {
        return request_token(settings, checks).await;
    }
    let what = "not tested: --probe requests one token with the shortest lifetime";
    checks.push(Check::ok("key", what));
    Ok(())
}

/// Says why the worker does not use the proxy that the environment names.
fn bypassed_proxy(route: &Route) -> Option<Check> {
    let why = match route {
        Route::Proxied(_) | Route::Direct(Direct::NoneSet) => return None,
        Route::Direct(Direct::Excluded) => "NO_PROXY contains its host",
        Route::Direct(Direct::Loopback) => "it is on this machine",
        Route::Direct(Direct::PlainHttp) => "its URL is plain http",
    };
    Some(Check::ok("proxy", format!("the platform is reached without the proxy: {why}")))
}

async fn request_token(settings: &PlatformSettings, checks: &mut Vec<Check>) -> Result<(), Check> {
    let platform = PlatformClient::new(settings, None, 1, Metrics::new())
        .map_err(|error| Check::finding("key", error.to_string()).cost("no request is served"))?;
    let (answer, date) = platform.probe().await;
    let now = SystemTime::now();
    checks.push(match answer {
        Ok(()) => Check::ok("key", "the platform accepts it"),
        Err(error) => {
            let remedy = match &error {
                CallError::Refused { .. } => {
                    "give the key the permission `Ephemeral Devices: Write`; test the key and the URL with curl"
                }
                _ => "the key is not at fault: fix what the error names, then test the key again",
            };
            Check::finding("key", error.to_string())
                .cost("requests are held until the platform accepts the key")
                .remedy(remedy)
        }
    });
    checks.extend(date.map(|date| {
        let ahead = OffsetDateTime::from(date) - OffsetDateTime::from(now);
        clock::check("the platform's", ahead.whole_milliseconds(), &TOLERANCE)
    }));
    Ok(())
}
