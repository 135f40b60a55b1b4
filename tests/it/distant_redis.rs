//! A Redis in another region works like any other, as long as it answers within the limit of a script.

use std::time::Instant;

use crate::support::{
    Authority, Distance, Node, TestEnv, TlsProxy,
    distance::{ROUND_TRIP, expect_shared_sessions},
    tls::tls_url,
    wait_until,
};

#[tokio::test]
async fn redis_150_ms_away_is_used_like_any_other() {
    let mut env = TestEnv::start().await;
    let direct = env.setting("REDIS_URL").to_owned();
    let distance = Distance::to(&direct, ROUND_TRIP).await;
    env.set("REDIS_URL", &distance.url(&direct));
    expect_shared_sessions(&mut env).await;
}

#[tokio::test]
async fn redis_150_ms_away_is_used_over_tls() {
    let authority = Authority::new();
    let mut env = TestEnv::start().await;
    env.trust(&authority);
    let direct = env.setting("REDIS_URL").to_owned();
    let tls = TlsProxy::to(&direct, &authority.issue(&["127.0.0.1"])).await;
    let distance = Distance::to(&tls_url(&direct, tls.port()), ROUND_TRIP).await;
    env.set("REDIS_URL", &tls_url(&direct, distance.port()));
    expect_shared_sessions(&mut env).await;
}

#[tokio::test]
async fn links_that_wait_for_a_distant_redis_are_reused_and_all_of_them_are_stored() {
    const PEOPLE: usize = 1_200;
    let node = Node::redis().await;
    let mut env = TestEnv::builder().redis(&node).start().await;
    let distance = Distance::to(&node.url, ROUND_TRIP).await;
    env.set("REDIS_URL", &distance.url(&node.url)).set("LOG", "info");
    node.kill().await;
    let worker = env.start_worker().await;
    env.publish_requests(0..PEOPLE).await;
    env.rabbitmq.next_events(PEOPLE).await;
    node.start().await;
    let back = Instant::now();
    let is_used = async || !worker.get("/readyz").await.1.contains("degraded");
    wait_until("the worker uses Redis", is_used).await;
    let used = back.elapsed();
    let stored = env.redis_entries().await.len();
    println!("used {used:?} after the outage, with {stored} links stored");
    // The last ones in the queue.
    env.request_again(PEOPLE - 30..PEOPLE).await;
    env.expect_all_reused(30).await;
    assert_eq!(env.platform.session_calls().len(), PEOPLE);
    let links = async || env.redis_entries().await.len() == PEOPLE;
    wait_until("all links are stored", links).await;
}
