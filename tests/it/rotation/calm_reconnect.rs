//! How many requests are fetched after a calm reconnect.

use super::Login;
use crate::support::{TestEnv, log_text, platform::hold_calls, wait_until};

/// All slots are taken, so the new connection could not take a delivery that opens its window.
#[tokio::test]
async fn replaced_connection_fetches_as_many_requests_as_before() {
    let (latch, script) = hold_calls(|call| !call.is_token());
    let mut env = TestEnv::builder().platform(script).start().await;
    env.set("CONCURRENCY", "8").set("IDV_TIMEOUT", "1m");
    let login = Login::new(&mut env).await;
    let worker = env.start_worker().await;
    env.publish_requests(0..40).await;
    worker.wait_for_in_flight(8).await;
    let url = login.node.url_as(&login.user, "p4ss-0");
    login.write_url(&format!("{url}?heartbeat=11"));
    worker.wait_for_log(log_text::RABBITMQ_SETTINGS_CHANGED).await;
    // Those that the former connection had fetched and not started are returned.
    let queue = &env.rabbitmq.queue;
    let fetched = async || login.node.unsettled_in(queue).await == 8 + 8;
    wait_until("eight requests in flight, and eight more", fetched).await;
    latch.open();
    env.expect_all_ready(40).await;
    assert_eq!(worker.log_lines(log_text::WINDOW_GROWN).len(), 1);
    assert_eq!(env.platform.session_calls().len(), 40, "one session for each person");
    worker.stop().await;
    login.delete().await;
}
