//! The platform: whether it can be reached and works, and on request whether it accepts the API key.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use url::Url;

use super::{
    check::{Check, Tolerance},
    clock,
    connect::connect,
};
use crate::{
    config::{Direct, Flow, PlatformSettings, Route},
    platform::{self, CallError, PlatformClient},
    telemetry::metrics::Metrics,
};

/// HTTP's `Date` header has a resolution of one second, and is older by the time of the answer.
const TOLERANCE: Tolerance =
    Tolerance { hint: Duration::from_secs(5), finding: Duration::from_secs(60) };

/// Whether to call the platform with the API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// No.
    Connect,
    /// Request what costs least and lives shortest. In the one-call flow that makes a session, so only with a
    /// workflow that is named for it.
    Call {
        /// The workflow for a session.
        workflow_id: Option<String>,
    },
}

pub(super) async fn examine(
    settings: &PlatformSettings,
    probe: &Probe,
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
    checks.push(health("HANDOFF_IDV_URL", &settings.url, &settings.route).await);
    if let Some(public) = &settings.public_url
        && *public != settings.url
    {
        // An invalid proxy was reported with the settings.
        let route = Route::from_env(public).unwrap_or(Route::Direct(Direct::NoneSet));
        checks.push(health("HANDOFF_IDV_PUBLIC_URL", public, &route).await);
    }
    let untested = match (probe, settings.flow) {
        (Probe::Call { workflow_id: None }, Flow::Token) => {
            return call(settings, None, checks).await;
        }
        (Probe::Call { workflow_id: Some(id) }, Flow::Deeplink) => {
            return call(settings, Some(id), checks).await;
        }
        (Probe::Call { .. }, Flow::Token) => {
            "not tested: --workflow is for the one-call flow; remove it"
        }
        (Probe::Connect, Flow::Token) => {
            "not tested: --probe requests one token with the shortest lifetime"
        }
        (_, Flow::Deeplink) => {
            "not tested: --probe --workflow ID makes a session of that workflow, which lives for a second"
        }
    };
    checks.push(Check::ok("key", untested));
    Ok(())
}

/// Checks `GET /api/health`, which needs no key.
async fn health(setting: &str, url: &Url, route: &Route) -> Check {
    const NAME: &str = "health";
    let not_there = "people cannot open their links if the address is wrong";
    match platform::health(url, route).await {
        Ok(status) if status.is_success() => {
            Check::ok(NAME, format!("{setting}: the platform says that it works"))
        }
        Ok(status) if status.is_server_error() => {
            let what = format!("{setting}: GET /api/health answers {}", status.as_u16());
            Check::finding(NAME, what)
                .cost("requests are held while the platform does not work")
                .remedy("look at the platform's own logs; if a proxy answers, look at its backends")
        }
        Ok(status) => {
            let what = format!("{setting}: GET /api/health answers {}", status.as_u16());
            Check::hint(NAME, what).cost(not_there).remedy(
                "check host and path; a gateway may also hide this route, and old platforms may lack it",
            )
        }
        Err(why) => Check::hint(NAME, format!("{setting}: no answer to GET /api/health: {why}"))
            .cost(not_there)
            .remedy("check the address, unless it can only be reached from where people are"),
    }
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

/// Calls the platform with the API key.
async fn call(
    settings: &PlatformSettings,
    workflow_id: Option<&str>,
    checks: &mut Vec<Check>,
) -> Result<(), Check> {
    let platform = PlatformClient::new(settings, None, 1, Metrics::new())
        .map_err(|error| Check::finding("key", error.to_string()).cost("no request is served"))?;
    let (answer, date) = match workflow_id {
        Some(workflow_id) => platform.probe_deeplink(workflow_id).await,
        None => platform.probe().await,
    };
    let now = SystemTime::now();
    checks.push(match answer {
        Ok(()) => Check::ok("key", "the platform accepts it"),
        Err(error) => {
            let remedy = match &error {
                CallError::Refused { .. } if workflow_id.is_some() => {
                    "give the key the permission `deeplink:write`, and check the workflow and the URL; platforms before \
                     3.2 have no such call: set HANDOFF_IDV_FLOW=token for them"
                }
                CallError::Rejected(_) => "check the workflow, then test the key again",
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
