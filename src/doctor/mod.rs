//! Checks the settings, RabbitMQ, Redis and the platform, for `handoff doctor`.
//!
//! The four areas run concurrently. No check changes anything: RabbitMQ is only queried, Redis gets one
//! key that is deleted at once, and the platform is called with the API key only on request.

mod certificate;
mod check;
mod clock;
mod connect;
mod families;
mod format;
mod platform;
mod presented;
mod proxy;
mod rabbitmq;
mod redis;
mod redis_modes;
mod settings;
mod stream;
mod topology;

use std::time::Duration;

use tokio::time::timeout;

pub(crate) use self::{
    check::{Area, Check, Verdict},
    platform::Probe,
};
use crate::config::Settings;

/// Time limit of one area, on top of the limits of its steps.
const AREA_LIMIT: Duration = Duration::from_secs(30);

/// Checks everything that a worker with these settings needs.
///
/// `former` names request queues that the settings no longer name.
pub(crate) async fn examine(settings: &Settings, probe: &Probe, former: &[String]) -> Vec<Check> {
    let areas = tokio::join!(
        examine_area(Area::Settings, async |checks| {
            settings::examine(settings, checks);
            Ok(())
        }),
        examine_area(Area::RabbitMq, async |checks| {
            rabbitmq::examine(settings, former, checks).await
        }),
        examine_area(Area::Redis, async |checks| redis::examine(&settings.cache, checks).await),
        examine_area(Area::Platform, async |checks| {
            platform::examine(&settings.platform, probe, checks).await
        }),
    );
    [areas.0, areas.1, areas.2, areas.3].concat()
}

/// Runs the checks of an area. Those that finish before the time limit count.
///
/// An area ends early with the finding that makes its other checks impossible.
async fn examine_area(
    area: Area,
    examine: impl AsyncFnOnce(&mut Vec<Check>) -> Result<(), Check>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let end = timeout(AREA_LIMIT, examine(&mut checks)).await.unwrap_or_else(|_| {
        let what = format!("the checks did not finish within {} s", AREA_LIMIT.as_secs());
        Err(Check::finding("time", what).cost("the remaining checks did not run"))
    });
    checks.extend(end.err());
    checks.into_iter().map(|check| Check { area, ..check.escaped() }).collect()
}
