//! The index of sessions, where one session's link is stored more than once.

use std::time::SystemTime;

use super::one_call::{claim, lease};
use crate::{
    cache::{
        Claim, Ended, Forgotten, LinkId, Stamp, StoreOutcome,
        test_redis::{HOUR, TestRedis, connected},
    },
    config::Flow,
    session::{Access, Session},
};

#[tokio::test]
async fn one_script_stores_a_link_and_its_index_entry_unless_the_session_has_ended() {
    let redis = TestRedis::connect().await;
    let cache = connected(&redis.settings(Flow::Token)).await;
    let made_at = SystemTime::now();
    let expires_at = made_at + HOUR;
    for has_ended in [false, true] {
        let id = format!("s{has_ended}");
        let access = Access::Token("t".to_owned().into());
        let session = Session { access, id: id.clone(), made_at, expires_at };
        if has_ended {
            assert_eq!(cache.end(&Ended::Session(&id, None)).await, Ok(Forgotten::Unknown));
        }
        let held = lease(&cache, "r1").await;
        let stored = held.store(&session).await;
        assert_eq!(stored, Ok(StoreOutcome::Stored { is_indexed: !has_ended }));
        // A link that says so is handed out without another look at the index.
        let Claim::Link(link) = claim(&cache, "r2").await else { panic!("no link") };
        assert_eq!(link.is_indexed, !has_ended);
        if !has_ended {
            assert_eq!(cache.end(&Ended::Session(&id, None)).await, Ok(Forgotten::Yes));
            assert!(matches!(claim(&cache, "r3").await, Claim::Lease(_)));
        }
        redis.delete_all().await;
    }
}

#[tokio::test]
async fn session_is_forgotten_though_its_index_entry_names_an_earlier_store() {
    let redis = TestRedis::connect().await;
    let cache = connected(&redis.settings(Flow::Token)).await;
    let keys = cache.keys("ann", "w");
    let made_at = SystemTime::now();
    let id = "s".to_owned();
    let access = Access::Token("t".to_owned().into());
    let expires_at = made_at + HOUR;
    let session = Session { access, id: id.clone(), made_at, expires_at };
    let link_of = |request| LinkId::new(&Stamp::of(request), made_at);
    for of in [None, Some(&keys)] {
        // r1 made the session without Redis. r2 stores its link before the late scripts of r1 run.
        let held = lease(&cache, "r2").await;
        assert_eq!(
            held.store_pending(&session).await,
            Ok(StoreOutcome::Stored { is_indexed: false })
        );
        assert_eq!(cache.index(&keys, link_of("r2"), &session).await, Ok(false));
        cache.note_indexed(&keys, link_of("r2")).await;
        assert_eq!(cache.index(&keys, link_of("r1"), &session).await, Ok(false));

        assert_eq!(cache.end(&Ended::Session(&id, of)).await, Ok(Forgotten::Yes));
        assert!(matches!(claim(&cache, "r3").await, Claim::Lease(_)));
        redis.delete_all().await;
    }
}
