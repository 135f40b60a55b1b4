//! Restarts of all nodes, one after another, as an upgrade does them.

use std::time::Duration;

use super::{load::Load, seal, start, tls::ClusterTls};

#[tokio::test]
async fn rolling_restart_at_50_requests_a_second_costs_no_event_and_no_session() {
    let (cluster, mut env) = start().await;
    let tls = ClusterTls::start(&cluster, &mut env).await;
    seal(&mut env);
    let load = Load::start(&env, &cluster, 1).await;
    let worker = env.start_worker().await;
    let producing = load.produce(50.0);
    for node in &cluster.nodes {
        load.wait_for_next_event().await;
        node.stop().await;
        node.start().await;
        // As operators do, since the queues would have no majority without this node and the next.
        node.ctl(&["await_online_nodes", "3"]).await;
    }
    load.wait_for_next_event().await;
    producing.stop().await;
    load.wait_for_events().await;
    let gap = load.assert_all_ready("rolling restart", &env, &worker);
    assert!(gap < Duration::from_secs(3), "{gap:?}");
    tls.assert_used();
    worker.stop().await;
}
