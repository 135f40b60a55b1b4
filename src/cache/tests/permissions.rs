//! What a Redis user needs.

use std::time::SystemTime;

use deadpool_redis::redis::cmd;

use super::one_call::{claim, lease};
use crate::{
    cache::{
        Claim, StoreOutcome,
        test_redis::{HOUR, TestRedis, connected},
    },
    config::{Flow, RedisSettings},
    session::{Access, Session},
};

/// Such a user cannot forget links, but must not lose the cache.
#[tokio::test]
async fn user_with_the_permissions_of_release_0_1_claims_and_stores_links() {
    let redis = TestRedis::connect().await;
    let user = redis.prefix.clone();
    let mut grant = cmd("ACL");
    grant.arg("SETUSER").arg(&user).arg("on").arg(">secret").arg(format!("~{user}:*"));
    let commands = "+ping +script|load +evalsha +get +strlen +set +del +pttl +pexpire +time";
    for command in commands.split(' ') {
        grant.arg(command);
    }
    grant.query_async::<()>(&mut redis.connection.clone()).await.unwrap();
    let url = redis.url_of(&user, "secret");
    let mut settings = redis.settings(Flow::Token);
    settings.redis = RedisSettings::single(&url).unwrap();
    let cache = connected(&settings).await;

    let made_at = SystemTime::now();
    let access = Access::Token("t".to_owned().into());
    let session = Session { access, id: "s".to_owned(), made_at, expires_at: made_at + HOUR };
    let stored = lease(&cache, "r1").await.store(&session).await;
    assert_eq!(stored, Ok(StoreOutcome::Stored { is_indexed: true }));
    assert!(matches!(claim(&cache, "r2").await, Claim::Link(_)));

    redis.delete_all().await;
    let mut remove = cmd("ACL");
    remove.arg("DELUSER").arg(&user);
    remove.query_async::<()>(&mut redis.connection.clone()).await.unwrap();
}
