//! What Redis keeps for the one-call flow.

use std::time::SystemTime;

use deadpool_redis::redis::AsyncCommands;

use crate::{
    cache::{
        Cache, Claim, Freshness, Lease, Stamp, StoreOutcome,
        test_redis::{HOUR, TestRedis, connected},
    },
    config::Flow,
    session::{Access, Session},
};

fn link(url: &str) -> Session {
    let made_at = SystemTime::now();
    let access = Access::Link(url.to_owned().into());
    Session { access, id: "s".to_owned(), made_at, expires_at: made_at + HOUR }
}

pub(super) async fn claim(cache: &Cache, request: &str) -> Claim {
    let stamp = Stamp::of(request);
    cache.claim(&cache.keys("ann", "w"), &stamp, &Freshness::Any, None).await.unwrap()
}

pub(super) async fn lease(cache: &Cache, request: &str) -> Lease {
    match claim(cache, request).await {
        Claim::Lease(lease) => lease,
        other => panic!("not the lease: {other:?}"),
    }
}

#[tokio::test]
async fn links_of_a_request_that_ended_or_were_forgotten_are_counted() {
    let mut redis = TestRedis::connect().await;
    let cache = connected(&redis.settings(Flow::Deeplink)).await;
    let keys = cache.keys("ann", "w");
    for earlier_links in 0..3 {
        // A crash before the link is stored changes nothing.
        lease(&cache, "r1").await.release(false).await;
        let lease = lease(&cache, "r1").await;
        assert_eq!(lease.earlier_links(), earlier_links);
        // A store whose answer was lost is repeated.
        let made = link("https://x/mobile?a");
        for is_indexed in [earlier_links == 0, false] {
            assert_eq!(lease.store(&made).await, Ok(StoreOutcome::Stored { is_indexed }));
        }
        assert!(matches!(claim(&cache, "r1").await, Claim::Link(_)));
        redis.delete(&[&keys.link]).await;
    }
    // The count is the request's own.
    for other in 2..9 {
        let lease = lease(&cache, &format!("r{other}")).await;
        assert_eq!(lease.earlier_links(), 0);
        lease.store(&link("https://x/mobile?b")).await.unwrap();
        redis.delete(&[&keys.link]).await;
    }
    let again = lease(&cache, "r1").await;
    assert_eq!(again.earlier_links(), 3, "others were counted since");
    again.release(false).await;
    let ttl: i64 = redis.connection.pttl(&keys.saved).await.unwrap();
    assert!(0 < ttl && ttl <= 24 * 3_600_000, "{ttl}");
    let saved: String = redis.connection.get(&keys.saved).await.unwrap();
    assert_eq!(saved.split(',').count(), 8);
    redis.delete_all().await;
}

#[tokio::test]
async fn flows_share_the_lease_and_hand_out_no_link_of_each_other() {
    let redis = TestRedis::connect().await;
    let caches = [
        connected(&redis.settings(Flow::Token)).await,
        connected(&redis.settings(Flow::Deeplink)).await,
    ];
    let keys = caches.each_ref().map(|cache| cache.keys("ann", "w"));
    for (own, other) in [(0, 1), (1, 0)] {
        let held = lease(&caches[own], "r1").await;
        assert!(matches!(claim(&caches[other], "r2").await, Claim::LeaseTaken { .. }));
        let mut made = link("https://x/mobile?a");
        if own == 0 {
            made.access = Access::Token("t".to_owned().into());
        }
        held.store(&made).await.unwrap();
        let Claim::Link(found) = claim(&caches[own], "r2").await else { panic!("no link") };
        assert_eq!(matches!(found.session.access, Access::Token(_)), own == 0);
        let others = lease(&caches[other], "r2").await;
        assert!(others.stored_token.is_none() && others.earlier_links() == 0);
        others.release(false).await;
        redis.delete(&[&keys[own].link]).await;
    }
    redis.delete_all().await;
}
