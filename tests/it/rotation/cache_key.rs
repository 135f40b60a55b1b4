//! The key that seals values in Redis.

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::support::{TempFile, TestEnv, Worker, log_text};

/// A replica with a key file of its own: a secret reaches one host after another.
struct Replica {
    worker: Worker,
    file: TempFile,
    changes: usize,
}

impl Replica {
    async fn start(env: &mut TestEnv, keys: &str) -> Self {
        let file = TempFile::new(keys);
        env.set("CACHE_KEY_FILE", file.path());
        Self { worker: env.start_worker().await, file, changes: 0 }
    }

    /// Writes the file, and waits until the replica has read it.
    async fn change(&mut self, keys: &str) {
        std::fs::write(self.file.path(), keys).unwrap();
        self.changes += 1;
        self.worker.wait_for_logs(log_text::SECRET_FILE_CHANGED, self.changes).await;
    }
}

/// Links are asked for before, between and after the steps: each person has one session.
#[tokio::test]
async fn cache_key_is_rotated_in_steps_without_a_second_session() {
    let key = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
    let (old, new) = (key(1), key(2));
    let mut env = TestEnv::start().await;
    // Both replicas take part: each has one request in hand.
    env.set("CONCURRENCY", "2");
    let mut a = Replica::start(&mut env, &old).await;
    let mut b = Replica::start(&mut env, &old).await;
    env.publish_requests(0..10).await;
    env.expect_all_ready(10).await;

    let both = format!("{old},{new}");
    tokio::join!(a.change(&both), b.change(&both));
    env.publish_requests(10..20).await;
    env.expect_all_ready(10).await;

    // For a moment, one replica seals with the new key and the other with the old one.
    let both = format!("{new},{old}");
    a.change(&both).await;
    env.publish_requests(20..40).await;
    env.expect_all_ready(20).await;
    env.request_again(0..40).await;
    env.expect_all_reused(40).await;
    b.change(&both).await;
    env.publish_requests(40..50).await;
    env.expect_all_ready(10).await;
    env.request_again(0..50).await;
    env.expect_all_reused(50).await;

    // Links that the old key sealed have expired by now.
    tokio::join!(a.change(&new), b.change(&new));
    env.request_again(40..50).await;
    env.expect_all_reused(10).await;
    assert_eq!(env.platform.session_calls().len(), 50, "one session for each person");
    a.worker.stop().await;
    b.worker.stop().await;
}
