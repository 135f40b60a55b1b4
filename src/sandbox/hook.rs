//! The hook with which tests take over the answers to API calls.

use std::{fmt, sync::Arc};

use axum::response::Response;
use futures_util::future::BoxFuture;

use super::{api, app::App, call::ApiCall};

/// Answers every API call in place of the simulation.
pub(super) type Hook =
    Arc<dyn Fn(ApiCall, Simulation) -> BoxFuture<'static, Response> + Send + Sync>;

/// Boxes the future of a hook.
pub(super) fn boxed<F>(hook: impl Fn(ApiCall, Simulation) -> F + Send + Sync + 'static) -> Hook
where
    F: Future<Output = Response> + Send + 'static,
{
    Arc::new(move |call, simulation| Box::pin(hook(call, simulation)))
}

/// What the sandbox would do with a call if there were no hook.
#[derive(Clone)]
pub struct Simulation {
    app: Arc<App>,
}

impl Simulation {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// Serves the call as the sandbox does without a hook.
    ///
    /// Faults, the rate limit and latency apply, and the call is recorded. The token or session is
    /// made at the first poll; the rest of the future is latency. Dropping it does not undo the
    /// work.
    pub async fn answer(&self, call: &ApiCall) -> Response {
        api::answer(&self.app, call).await
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").finish_non_exhaustive()
    }
}
