//! Work alongside other work.

use std::pin::Pin;

use futures_util::future::{Either, select};

/// Runs `background` alongside `work`, and cancels it when `work` is done.
///
/// Takes pinned futures: passed by value, each would be stored twice in the caller's future.
pub(crate) async fn with_background<T>(
    work: Pin<&mut impl Future<Output = T>>,
    background: Pin<&mut impl Future<Output = ()>>,
) -> T {
    match select(work, background).await {
        Either::Left((done, _)) => done,
        Either::Right(((), work)) => work.await,
    }
}
