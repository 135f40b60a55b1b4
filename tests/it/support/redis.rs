//! A test's own view of Redis.

use deadpool_redis::redis::{Client, FromRedisValue, aio::MultiplexedConnection};

pub use deadpool_redis::redis::cmd;

use super::wait::wait_until;

/// The options of a node of a Redis Cluster.
pub const CLUSTER: [&str; 2] = ["--cluster-enabled", "yes"];

/// One key, as Redis holds it.
#[derive(Clone, Debug)]
pub struct RedisEntry {
    pub key: String,
    pub value: Vec<u8>,
    pub ttl_ms: i64,
}

pub async fn connect(url: &str) -> MultiplexedConnection {
    Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Runs a command given as one line, `CONFIG SET maxmemory 1` for example.
pub async fn run(redis: &mut MultiplexedConnection, line: &str) {
    ask(redis, line).await
}

/// The same, with an answer.
pub async fn ask<T: FromRedisValue>(redis: &mut MultiplexedConnection, line: &str) -> T {
    let mut words = line.split(' ');
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>()).query_async(redis).await.unwrap()
}

pub async fn set(redis: &mut MultiplexedConnection, key: &str, value: &[u8]) {
    cmd("SET").arg(key).arg(value).query_async::<()>(redis).await.unwrap();
}

/// Makes a node of a Redis Cluster serve all slots.
pub async fn add_all_slots(node: &mut MultiplexedConnection) {
    let slots: Vec<u16> = (0..16_384).collect();
    cmd("CLUSTER").arg("ADDSLOTS").arg(slots).query_async::<()>(node).await.unwrap();
}

/// Waits until this node of a Redis Cluster knows that all slots are served.
pub async fn wait_for_cluster(node: &MultiplexedConnection) {
    wait_until("cluster_state:ok", async || {
        let info: String = ask(&mut node.clone(), "CLUSTER INFO").await;
        info.contains("cluster_state:ok")
    })
    .await;
}

/// The first number after `name` in a section of `INFO`.
pub async fn info_number(redis: &MultiplexedConnection, section: &str, name: &str) -> Option<u64> {
    let info: String = ask(&mut redis.clone(), &format!("INFO {section}")).await;
    let rest = info.lines().find_map(|line| line.strip_prefix(name))?;
    let digits = rest.trim_start_matches(|next: char| !next.is_ascii_digit());
    digits.split(|next: char| !next.is_ascii_digit()).next()?.parse().ok()
}

/// Everything under a key prefix.
pub async fn entries(redis: &mut MultiplexedConnection, prefix: &str) -> Vec<RedisEntry> {
    let mut entries = Vec::new();
    for key in keys(redis, prefix).await {
        let value = cmd("GET").arg(&key).query_async(redis).await.unwrap();
        let ttl_ms = cmd("PTTL").arg(&key).query_async(redis).await.unwrap();
        entries.push(RedisEntry { key, value, ttl_ms });
    }
    entries
}

pub async fn delete_all(redis: &mut MultiplexedConnection, prefix: &str) {
    for key in keys(redis, prefix).await {
        cmd("DEL").arg(key).query_async::<()>(redis).await.unwrap();
    }
}

async fn keys(redis: &mut MultiplexedConnection, prefix: &str) -> Vec<String> {
    cmd("KEYS").arg(format!("{prefix}:*")).query_async(redis).await.unwrap()
}

/// Parses what a client sent as Redis commands: `*<words>\r\n$<length>\r\n<word>…`.
pub fn commands(sent: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut rest = sent;
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let words = take_number(&mut rest, b'*');
        let word = |_| {
            let length = take_number(&mut rest, b'$');
            let (word, after) = rest.split_at(length);
            rest = &after[2..];
            word.to_vec()
        };
        commands.push((0..words).map(word).collect());
    }
    commands
}

fn take_number(rest: &mut &[u8], kind: u8) -> usize {
    let end = rest.iter().position(|byte| *byte == b'\r').unwrap();
    let (line, after) = rest.split_at(end);
    assert_eq!(line[0], kind);
    *rest = &after[2..];
    std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
}
