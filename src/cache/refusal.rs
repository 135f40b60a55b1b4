//! Why Redis refuses a command: the causes that have a name and a remedy.

use std::fmt;

use deadpool_redis::redis::{ErrorKind, RedisError};

/// Why Redis refused a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key's slot is on another node of the Redis Cluster.
    Moved,
    /// The key's slot is moving to another node of the Redis Cluster.
    Ask,
    /// The keys of one command are in different slots.
    CrossSlot,
    /// The user may not run the command, or not use the key.
    NoPerm,
    /// The memory is full.
    Oom,
    /// The last snapshot or append failed, and writes are off until one succeeds.
    MisConf,
    /// Too few replicas are connected.
    NoReplicas,
    /// A replica, which is read-only.
    ReadOnly,
    /// A replica that has lost its primary, and serves no stale data.
    MasterDown,
    /// Redis is loading its data.
    Loading,
    /// The Redis Cluster does not serve all slots.
    ClusterDown,
    /// The keys' slot is moving between nodes of the Redis Cluster.
    TryAgain,
    /// No user is logged in, or the login is refused.
    NoAuth,
    /// All connections that Redis allows are in use.
    MaxClients,
    /// Another client's script runs for seconds.
    Busy,
    /// The script is not there, right after it was loaded.
    NoScript,
    /// Only clients on the same host may connect.
    Denied,
    /// Any other error of Redis.
    Other,
}

/// What ends a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Redis is unavailable, and may be back in a moment without help: waiting makes sense.
    ByItself,
    /// Redis is well, and refuses until an operator changes something: waiting is pointless.
    ByOperator,
}

impl Refusal {
    /// All refusals, in the order of their declaration.
    pub(crate) const ALL: [Self; 18] = [
        Self::Moved,
        Self::Ask,
        Self::CrossSlot,
        Self::NoPerm,
        Self::Oom,
        Self::MisConf,
        Self::NoReplicas,
        Self::ReadOnly,
        Self::MasterDown,
        Self::Loading,
        Self::ClusterDown,
        Self::TryAgain,
        Self::NoAuth,
        Self::MaxClients,
        Self::Busy,
        Self::NoScript,
        Self::Denied,
        Self::Other,
    ];

    /// `None` if the error is not Redis' answer.
    pub(super) fn find(error: &RedisError) -> Option<Self> {
        if error.kind() == ErrorKind::AuthenticationFailed {
            return Some(Self::NoAuth);
        }
        Some(match error.code()? {
            "ERR" => Self::find_in_text(error.detail().unwrap_or_default()).unwrap_or(Self::Other),
            code => Self::of_code(code).unwrap_or(Self::Other),
        })
    }

    /// The refusal in the text of an `ERR`.
    ///
    /// Redis before 7 reports an error inside a script as `ERR Error running script (…): @user_script: 1:
    /// -READONLY …`. A script's lack of permission has no code, not even in Valkey 8.1.
    fn find_in_text(text: &str) -> Option<Self> {
        if text.starts_with("max number of clients reached") {
            return Some(Self::MaxClients);
        }
        if text.starts_with("Error running script") {
            let mut words = text.split(": ").filter_map(|rest| rest.strip_prefix('-'));
            let code = words.find_map(|rest| Self::of_code(rest.split(' ').next()?));
            if code.is_some() {
                return code;
            }
        }
        // The slot moves, and one of the script's keys is on the other node.
        if text.contains("cript attempted to access a non local key") {
            return Some(Self::TryAgain);
        }
        // The proxies of Alibaba Cloud, Redis Cluster Proxy 1.0, and any that passes Redis' own text on.
        if text.contains("same slot") || text.starts_with("Cross-slot queries") {
            return Some(Self::CrossSlot);
        }
        // Redis 6.0 to 7.0, and later ones.
        let is_denied = text.contains("The user executing the script can't ")
            || text.starts_with("ACL failure in script: ");
        is_denied.then_some(Self::NoPerm)
    }

    fn of_code(code: &str) -> Option<Self> {
        Some(match code {
            "MOVED" => Self::Moved,
            "ASK" => Self::Ask,
            "CROSSSLOT" => Self::CrossSlot,
            "NOPERM" => Self::NoPerm,
            "OOM" => Self::Oom,
            "MISCONF" => Self::MisConf,
            "NOREPLICAS" => Self::NoReplicas,
            "READONLY" => Self::ReadOnly,
            "MASTERDOWN" => Self::MasterDown,
            "LOADING" => Self::Loading,
            "CLUSTERDOWN" => Self::ClusterDown,
            "TRYAGAIN" => Self::TryAgain,
            "NOAUTH" | "WRONGPASS" => Self::NoAuth,
            "BUSY" => Self::Busy,
            "NOSCRIPT" => Self::NoScript,
            "DENIED" => Self::Denied,
            _ => return None,
        })
    }

    /// What ends it, for a worker that knows one address: one that follows redirections gets over `Moved` and
    /// `Ask` by itself.
    pub(crate) fn recovery(self) -> Recovery {
        match self {
            Self::ReadOnly
            | Self::MasterDown
            | Self::Loading
            | Self::ClusterDown
            | Self::TryAgain
            | Self::NoAuth
            | Self::MaxClients
            | Self::Busy
            | Self::Denied => Recovery::ByItself,
            Self::Moved
            | Self::Ask
            | Self::CrossSlot
            | Self::NoPerm
            | Self::Oom
            | Self::MisConf
            | Self::NoReplicas
            | Self::NoScript
            | Self::Other => Recovery::ByOperator,
        }
    }

    /// The value of the metrics label `cause`.
    pub(crate) fn label(self) -> &'static str {
        self.texts().0
    }

    /// How to fix it; empty where that is not known.
    pub(crate) fn remedy(self) -> &'static str {
        self.texts().2
    }

    /// The label, the cause and the remedy.
    fn texts(self) -> (&'static str, &'static str, &'static str) {
        const MODE: &str =
            "set HANDOFF_REDIS_MODE=cluster, and HANDOFF_REDIS_URL to the addresses of some nodes";
        const PRIMARY: &str = "set HANDOFF_REDIS_URL to the address of the primary, or HANDOFF_REDIS_MODE to \
             sentinel or cluster if another server may become the primary";
        const DOWN: &str = "bring back the nodes that are down (CLUSTER NODES); a Redis Cluster also needs \
             HANDOFF_REDIS_MODE=cluster";
        const MOVING: &str = "wait until the slots have moved; a Redis Cluster also needs \
             HANDOFF_REDIS_MODE=cluster";
        const CLUSTER_NODE: &str = "this is a node of a Redis Cluster";
        match self {
            Self::Moved => ("moved", CLUSTER_NODE, MODE),
            Self::Ask => ("ask", CLUSTER_NODE, MODE),
            Self::CrossSlot => {
                ("crossslot", "a Redis Cluster, or a proxy of one, splits the keys", MODE)
            }
            Self::NoPerm => (
                "noperm",
                "the user may not run a command of the worker, or not use its keys",
                "grant the permissions that `handoff doctor` shows to the user in HANDOFF_REDIS_URL",
            ),
            Self::Oom => (
                "oom",
                "its memory is full (maxmemory)",
                "give Redis more memory, or use a dedicated Redis",
            ),
            Self::MisConf => (
                "misconf",
                "it takes no writes, because it could not save to disk (stop-writes-on-bgsave-error)",
                "fix what keeps Redis from saving: its log names it; disk space and permissions are common",
            ),
            Self::NoReplicas => (
                "noreplicas",
                "it takes no writes, because too few replicas are connected (min-replicas-to-write)",
                "bring the missing replicas back, or lower min-replicas-to-write",
            ),
            Self::ReadOnly => ("readonly", "this is a read-only replica", PRIMARY),
            Self::MasterDown => {
                ("masterdown", "this is a replica that has lost its primary", PRIMARY)
            }
            Self::Loading => (
                "loading",
                "it is loading its data",
                "wait until it has loaded; if that recurs, find out why Redis restarts",
            ),
            Self::ClusterDown => {
                ("clusterdown", "the Redis Cluster does not serve all slots", DOWN)
            }
            Self::TryAgain => ("tryagain", "the Redis Cluster moves the slot of the keys", MOVING),
            Self::NoAuth => (
                "noauth",
                "user or password refused",
                "check user and password in HANDOFF_REDIS_URL",
            ),
            Self::MaxClients => (
                "maxclients",
                "all its connections are in use (maxclients)",
                "raise maxclients, or find the clients that hold the connections (CLIENT LIST)",
            ),
            Self::Busy => (
                "busy",
                "it is busy with another client's script",
                "find the script with SLOWLOG GET, or use a dedicated Redis",
            ),
            Self::NoScript => (
                "noscript",
                "it lost a script right after loading it",
                "find the client that runs SCRIPT FLUSH (MONITOR), or bypass the proxy that spreads commands over \
                 servers",
            ),
            Self::Denied => (
                "denied",
                "it is in protected mode, which admits only clients on its own host",
                "give Redis' default user a password, or set protected-mode no",
            ),
            Self::Other => ("other", "it answered with an error", ""),
        }
    }
}

/// Begins with Redis' own code where there is one: on-call searches for it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (label, cause, _) = self.texts();
        match self {
            Self::NoAuth | Self::MaxClients | Self::Other => f.write_str(cause),
            _ => write!(f, "{}: {cause}", label.to_ascii_uppercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{Value, parse_redis_value};

    use super::*;

    fn find(reply: &str) -> Option<Refusal> {
        let value = parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = value else { panic!("{value:?}") };
        Refusal::find(&error.into())
    }

    #[test]
    fn refusals_are_found_in_the_replies_of_every_version() {
        // As Redis 6.0.16, Redis 7.0.15 and Valkey 8.1.1 answer.
        let wrapped = "ERR Error running script (call to f_0dba3f50748442a2f9b317a4d0e9153e82f5f7c5): \
             @user_script:1: @user_script: 1: ";
        let suffix = "script: 0dba3f50748442a2f9b317a4d0e9153e82f5f7c5, on @user_script:1.";
        for (reply, refusal) in [
            ("MOVED 3999 127.0.0.1:6381".to_owned(), Refusal::Moved),
            ("OOM command not allowed when used memory > 'maxmemory'.".to_owned(), Refusal::Oom),
            (
                format!("READONLY You can't write against a read only replica. {suffix}"),
                Refusal::ReadOnly,
            ),
            (
                format!("{wrapped}-READONLY You can't write against a read only replica."),
                Refusal::ReadOnly,
            ),
            (format!("{wrapped}-OOM command not allowed"), Refusal::Oom),
            (format!("{wrapped}-MISCONF Redis is configured to save: see"), Refusal::MisConf),
            (
                format!(
                    "{wrapped}The user executing the script can't run this command or subcommand"
                ),
                Refusal::NoPerm,
            ),
            (
                format!(
                    "ERR The user executing the script can't run this command or subcommand {suffix}"
                ),
                Refusal::NoPerm,
            ),
            (
                format!(
                    "ERR ACL failure in script: User poor has no permissions to run 'set' {suffix}"
                ),
                Refusal::NoPerm,
            ),
            (
                format!(
                    "ERR Script attempted to access a non local key in a cluster node {suffix}"
                ),
                Refusal::TryAgain,
            ),
            (
                format!(
                    "{wrapped}Lua script attempted to access a non local key in a cluster node"
                ),
                Refusal::TryAgain,
            ),
            (
                "CROSSSLOT Keys in request don't hash to the same slot".to_owned(),
                Refusal::CrossSlot,
            ),
            // As proxies answer.
            ("ERR 'EVAL' command keys must in same slot".to_owned(), Refusal::CrossSlot),
            ("ERR eval/evalsha command keys must be in same slot".to_owned(), Refusal::CrossSlot),
            ("ERR Cross-slot queries are disabled. They can be".to_owned(), Refusal::CrossSlot),
            (
                "ERR CROSSSLOT Keys in request don't hash to the same slot".to_owned(),
                Refusal::CrossSlot,
            ),
            ("NOAUTH Authentication required.".to_owned(), Refusal::NoAuth),
            ("ERR max number of clients reached".to_owned(), Refusal::MaxClients),
            ("NOSCRIPT No matching script. Please use EVAL.".to_owned(), Refusal::NoScript),
            ("DENIED Redis is running in protected mode".to_owned(), Refusal::Denied),
            ("ERR unknown command `x: -OOM y`".to_owned(), Refusal::Other),
            ("s3cret: -OOM x".to_owned(), Refusal::Other),
            (format!("{wrapped}-s3cret x"), Refusal::Other),
        ] {
            let found = find(&reply);
            assert_eq!(found, Some(refusal), "{reply}");
            assert!(!format!("{} {}", refusal, refusal.remedy()).contains("s3cret"));
        }
        let broken_pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Refusal::find(&broken_pipe.into()), None);
    }

    #[test]
    fn each_refusal_has_its_own_label_and_a_remedy() {
        for (place, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, place);
            let same = Refusal::ALL.iter().filter(|other| other.label() == refusal.label());
            assert_eq!(same.count(), 1);
            assert_eq!(refusal.remedy().is_empty(), refusal == Refusal::Other);
        }
    }
}
