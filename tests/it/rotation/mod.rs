//! Credentials that are replaced while the worker runs.

mod cache_key;
mod calm_reconnect;
mod refused;
mod under_load;
mod unreachable;

use std::collections::BTreeMap;

use deadpool_redis::redis::{Value, aio::MultiplexedConnection};

use crate::support::{Node, TempFile, TestEnv, redis};

/// A RabbitMQ user of one test, whose URL is in a file.
struct Login {
    node: Node,
    user: String,
    file: TempFile,
}

impl Login {
    /// Adds the user to the shared RabbitMQ, and has workers read the URL from the file.
    async fn new(env: &mut TestEnv) -> Self {
        let node = Node::shared_rabbitmq();
        let user = env.name.clone();
        let url = node.add_user(&user, "p4ss-0").await;
        let login = Self { node, user, file: TempFile::new(&url) };
        env.settings.remove("HANDOFF_AMQP_URL");
        env.set("AMQP_URL_FILE", login.file.path());
        login
    }

    async fn change_password(&self, password: &str) {
        self.node.ctl(&["change_password", &self.user, password]).await;
    }

    /// Writes the URL with this password into the file.
    fn write(&self, password: &str) {
        self.write_url(&self.node.url_as(&self.user, password));
    }

    fn write_url(&self, url: &str) {
        // The file is replaced at once: a reader never finds half of it.
        let next = TempFile::new(url);
        std::fs::rename(next.path(), self.file.path()).unwrap();
    }

    /// The user's refused logins so far, according to RabbitMQ's log.
    fn refused(&self) -> usize {
        let log = std::fs::read_dir(self.node.path("log")).into_iter().flatten().flatten();
        let texts = log.filter_map(|log| std::fs::read_to_string(log.path()).ok());
        let refusal = format!("PLAIN login refused: user '{}'", self.user);
        texts.map(|text| text.matches(&refusal).count()).sum()
    }

    async fn close_connections(&self) {
        self.node.ctl(&["close_all_user_connections", &self.user, "rotated"]).await;
    }

    async fn delete(&self) {
        self.node.ctl(&["delete_user", &self.user]).await;
    }
}

/// A Redis URL with the user and the password that a test rotates.
fn redis_url(node: &Node, password: &str) -> String {
    node.url.replace("redis://", &format!("redis://rotated:{password}@"))
}

/// The refused logins of a Redis so far.
async fn refused_by_redis(admin: &mut MultiplexedConnection) -> usize {
    let entries: Vec<BTreeMap<String, Value>> =
        redis::cmd("ACL").arg("LOG").query_async(admin).await.unwrap();
    let refused =
        entries.iter().filter(|entry| entry["reason"] == Value::BulkString(b"auth".into()));
    let counts = refused.map(|entry| match entry["count"] {
        Value::Int(count) => usize::try_from(count).unwrap(),
        ref other => panic!("{other:?}"),
    });
    counts.sum()
}
