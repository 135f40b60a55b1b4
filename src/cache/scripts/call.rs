//! A script with its keys and arguments, which are written into the command as they are added.
//!
//! `ScriptInvocation` of redis 1.8 keeps each key and argument in an allocation of its own, and copies all of them into
//! the command when the script runs, which takes 6,100 instructions more for the three scripts of a new link (not reported
//! upstream).

use deadpool_redis::redis::{
    Cmd, ErrorKind, FromRedisValue, RedisResult, Script, ServerErrorKind, ToRedisArgs,
    aio::ConnectionLike,
};

/// Room for the arguments of most scripts.
const ARGUMENTS: usize = 8;
const BYTES: usize = 512;

/// A script that is compiled into the program.
pub(in crate::cache) struct StaticScript(Script);

/// A script that is ready to run.
pub(in crate::cache) struct ScriptCall {
    script: &'static Script,
    command: Cmd,
}

impl StaticScript {
    pub(super) fn new(source: &str) -> Self {
        Self(Script::new(source))
    }

    /// Starts a call with these keys, which are all that the script uses.
    pub(in crate::cache) fn call<const KEYS: usize>(
        &'static self,
        keys: [&str; KEYS],
    ) -> ScriptCall {
        let mut command = Cmd::with_capacity(3 + KEYS + ARGUMENTS, BYTES);
        command.arg("EVALSHA").arg(self.0.get_hash()).arg(KEYS);
        for key in keys {
            command.arg(key);
        }
        ScriptCall { script: &self.0, command }
    }
}

impl ScriptCall {
    pub(in crate::cache) fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Runs the script; loads it first if Redis does not have it.
    pub(in crate::cache) async fn run<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
    ) -> RedisResult<T> {
        match self.command.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.load_async(connection).await?;
                self.command.query_async(connection).await
            }
            answer => answer,
        }
    }
}
