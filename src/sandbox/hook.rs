//! The hook with which tests take over the answers to API calls.

use std::sync::Arc;

use axum::response::Response;
use futures_util::future::BoxFuture;

use super::{api, app::App, call::ApiCall};

/// Answers every API call in place of the simulation.
pub(super) type Hook =
    Arc<dyn Fn(ApiCall, Simulation) -> BoxFuture<'static, Response> + Send + Sync>;

/// What the sandbox would do with a call if there were no hook.
#[derive(Clone)]
pub struct Simulation(pub(super) Arc<App>);

impl Simulation {
    /// Serves the call as the sandbox does without a hook.
    ///
    /// Faults, the rate limit and latency apply, and the call is recorded. The token or session is
    /// made at the first poll; the rest of the future is latency. Dropping it does not undo the
    /// work.
    pub async fn answer(&self, call: &ApiCall) -> Response {
        api::answer(&self.0, call).await
    }
}
