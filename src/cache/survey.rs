//! Looking at Redis as an operator would: what it is, how it is set up, whether it does what we need.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use deadpool_redis::redis::{
    self, AsyncConnectionConfig, Client, Script, aio::MultiplexedConnection,
};
use secrecy::{ExposeSecret, SecretString};

use super::pool::describe;

/// Limit of each step.
const STEP_LIMIT: Duration = Duration::from_secs(2);
/// How often the way there and back is timed.
const TRIPS: usize = 5;
/// What the worker's scripts do, on a key that goes by itself. Here one by one: of what a script may not
/// do, Redis does not say more than that.
const COMMANDS: [(&str, &[&str]); 6] = [
    ("SET", &["x", "PX", "1000"]),
    ("GET", &[]),
    ("STRLEN", &[]),
    ("PTTL", &[]),
    ("PEXPIRE", &["1000"]),
    ("DEL", &[]),
];

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// What Redis says of itself, or why it does not.
    pub info: Result<HashMap<String, String>, String>,
    /// The way there and back: the median of a few.
    pub latency: Duration,
    /// How far Redis' clock is ahead of ours, in milliseconds, where it tells the time.
    pub clock_ahead_ms: Option<i64>,
    /// Whether it does what the worker asks of it.
    pub commands: Result<(), RefusedCommand>,
}

/// What Redis did not do.
#[derive(Debug)]
pub struct RefusedCommand {
    /// The command.
    pub command: &'static str,
    /// The code Redis gave, or what happened instead.
    pub error: String,
}

/// Looks at Redis. Writes one key of its own below the prefix, which is gone at once.
///
/// # Errors
/// Cause there is no connection, in a few words.
pub async fn survey(url: &SecretString, prefix: &str) -> Result<Survey, String> {
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(STEP_LIMIT))
        .set_response_timeout(Some(STEP_LIMIT));
    let client = Client::open(url.expose_secret()).map_err(|error| describe(&error))?;
    let connecting = client.get_multiplexed_async_connection_with_config(&limits);
    let mut redis = connecting.await.map_err(|error| describe(&error))?;
    let latency = latency(&mut redis).await?;
    let info = redis::cmd("INFO").query_async::<String>(&mut redis).await;
    let info = info.map(|text| fields(&text)).map_err(|error| describe(&error));
    let clock_ahead_ms = ahead(&mut redis).await;
    let commands = trial(&mut redis, prefix).await;
    Ok(Survey { info, latency, clock_ahead_ms, commands })
}

async fn latency(redis: &mut MultiplexedConnection) -> Result<Duration, String> {
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        let ping = redis::cmd("PING").query_async::<()>(redis).await;
        ping.map_err(|error| describe(&error))?;
        trips.push(start.elapsed());
    }
    trips.sort_unstable();
    Ok(trips[TRIPS / 2])
}

async fn ahead(redis: &mut MultiplexedConnection) -> Option<i64> {
    let asked = SystemTime::now();
    let start = Instant::now();
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(redis).await.ok()?;
    let then = asked + start.elapsed() / 2;
    let theirs = i64::try_from(seconds * 1_000 + micros / 1_000).ok()?;
    let ours = then.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(theirs - i64::try_from(ours.as_millis()).ok()?)
}

async fn trial(redis: &mut MultiplexedConnection, prefix: &str) -> Result<(), RefusedCommand> {
    let refused = |command| move |error| RefusedCommand { command, error: describe(&error) };
    let key = format!("{prefix}:{{doctor}}:{}", uuid::Uuid::new_v4().simple());
    for (command, arguments) in COMMANDS {
        let mut call = redis::cmd(command);
        call.arg(&key).arg(arguments);
        call.query_async::<()>(redis).await.map_err(refused(command))?;
    }
    let time = redis::cmd("TIME").query_async::<()>(redis).await;
    time.map_err(refused("TIME"))?;
    let script = Script::new("return 1");
    let call = script.prepare_invoke();
    call.load_async(redis).await.map(drop).map_err(refused("SCRIPT LOAD"))?;
    call.invoke_async::<i64>(redis).await.map(drop).map_err(refused("EVALSHA"))
}

fn fields(info: &str) -> HashMap<String, String> {
    let fields = info.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}
