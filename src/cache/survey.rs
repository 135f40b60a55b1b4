//! Examines a Redis for `handoff doctor`: version, set-up, latency, and whether the worker may use it.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use deadpool_redis::redis::{
    self, AsyncConnectionConfig, Client, Script, aio::MultiplexedConnection,
};

use super::{dial::connect_error, error::CacheError, refusal::Recovery};
use crate::config::RedisNode;

/// Limit of each step.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);
/// How many round trips the median is taken of.
const ROUND_TRIPS: usize = 5;
/// The commands of the worker's scripts, each tried on a key that expires by itself.
///
/// They run one by one, because Redis does not say which command of a refused script it refused.
const COMMANDS: [(&str, &[&str]); 6] = [
    ("SET", &["x", "PX", "1000"]),
    ("GET", &[]),
    ("STRLEN", &[]),
    ("PTTL", &[]),
    ("PEXPIRE", &["1000"]),
    ("DEL", &[]),
];

/// The settings with which Redis refuses writes.
const REFUSING_SETTINGS: [&str; 2] = ["min-replicas-to-write", "stop-writes-on-bgsave-error"];

/// The findings about one Redis.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The fields of `INFO`, or why Redis refused it.
    pub(crate) info: Result<HashMap<String, String>, CacheError>,
    /// The settings that make Redis refuse writes; absent if Redis refuses `CONFIG GET`, as managed ones do.
    pub(crate) config: HashMap<String, String>,
    /// The median of a few round trips.
    pub(crate) latency: Duration,
    /// How far Redis' clock is ahead of this machine's; `None` if Redis refused `TIME`.
    pub(crate) clock_ahead_ms: Option<i64>,
    /// Whether Redis executes the commands and scripts that the worker needs.
    pub(crate) commands: Result<(), RefusedCommand>,
}

/// The first command that Redis did not execute.
#[derive(Debug)]
pub(crate) struct RefusedCommand {
    pub(crate) command: &'static str,
    pub(crate) error: CacheError,
}

/// Examines a server. Writes this key and deletes it again.
///
/// # Errors
/// Why there is no connection.
pub(crate) async fn survey(node: &RedisNode, key: &str) -> Result<Survey, CacheError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(STEP_TIMEOUT))
        .set_response_timeout(Some(STEP_TIMEOUT));
    let client = Client::open(node.info.clone()).map_err(|error| CacheError::of(&error))?;
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut redis = match connecting.await {
        Ok(redis) => redis,
        Err(error) => return Err(connect_error(node, &error).await),
    };
    let latency = median_round_trip(&mut redis).await?;
    let info = redis::cmd("INFO").query_async::<String>(&mut redis).await;
    let info = info.map(|text| parse_info(&text)).map_err(|error| CacheError::of(&error));
    let config = refusing_settings(&mut redis).await;
    let clock_ahead_ms = clock_ahead_ms(&mut redis).await;
    let commands = try_commands(&mut redis, key).await;
    Ok(Survey { info, config, latency, clock_ahead_ms, commands })
}

async fn median_round_trip(redis: &mut MultiplexedConnection) -> Result<Duration, CacheError> {
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        let ping = redis::cmd("PING").query_async::<()>(redis).await;
        // A refusal is an answer, too: `try_commands` reports it.
        let error = ping.err().map(|error| CacheError::of(&error));
        if let Some(error) = error.filter(|error| error.recovery() == Recovery::ByItself) {
            return Err(error);
        }
        trips.push(start.elapsed());
    }
    trips.sort_unstable();
    Ok(trips[ROUND_TRIPS / 2])
}

async fn refusing_settings(redis: &mut MultiplexedConnection) -> HashMap<String, String> {
    let mut config = HashMap::new();
    // Redis before 7 takes one name at a time.
    for name in REFUSING_SETTINGS {
        let mut get = redis::cmd("CONFIG");
        let values = get.arg("GET").arg(name).query_async::<HashMap<String, String>>(redis).await;
        config.extend(values.unwrap_or_default());
    }
    config
}

async fn clock_ahead_ms(redis: &mut MultiplexedConnection) -> Option<i64> {
    let sent = SystemTime::now();
    let start = Instant::now();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(redis).await.ok()?;
    // Redis reads its clock about half a round trip after the command was sent.
    let local = sent + start.elapsed() / 2;
    let redis_ms = i64::try_from(seconds * 1_000 + micros / 1_000).ok()?;
    let local = local.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(redis_ms - i64::try_from(local.as_millis()).ok()?)
}

async fn try_commands(redis: &mut MultiplexedConnection, key: &str) -> Result<(), RefusedCommand> {
    let refused = |command| move |error| RefusedCommand { command, error: CacheError::of(&error) };
    let ping = redis::cmd("PING").query_async::<()>(redis).await;
    ping.map_err(refused("PING"))?;
    for (command, arguments) in COMMANDS {
        let mut call = redis::cmd(command);
        call.arg(key).arg(arguments);
        call.query_async::<()>(redis).await.map_err(refused(command))?;
    }
    let time = redis::cmd("TIME").query_async::<()>(redis).await;
    time.map_err(refused("TIME"))?;
    let script = Script::new("return 1");
    let call = script.prepare_invoke();
    call.load_async(redis).await.map(drop).map_err(refused("SCRIPT LOAD"))?;
    call.invoke_async::<i64>(redis).await.map(drop).map_err(refused("EVALSHA"))
}

fn parse_info(info: &str) -> HashMap<String, String> {
    let fields = info.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}
