//! The table of settings: one row each, from which flags, environment variables and help are made.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

/// Which commands a setting matters to, `doctor` aside, which looks at all. A command takes no notice
/// of the others, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Whoever speaks to RabbitMQ.
    Broker,
    /// Whoever runs a worker: `run` and `demo`.
    Worker,
    /// The real platform: `run` alone, since the demo brings its own.
    Platform,
    /// Whoever logs.
    Logging,
}

/// One setting.
pub(super) struct Setting {
    /// The variable without its `HANDOFF_`, which names the flag too: `IDV_URL`, `--idv-url`.
    pub(super) name: &'static str,
    /// What holds when nothing is given; `None` where the setting is required or off.
    pub(super) default: Option<&'static str>,
    /// May also be given as `…_FILE`, a path to read.
    pub(super) secret: bool,
    pub(super) scope: Scope,
    value: &'static str,
    help: &'static str,
}

const fn row(
    scope: Scope,
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting { name, default, secret: false, scope, value, help }
}

const fn secret(mut setting: Setting) -> Setting {
    setting.secret = true;
    setting
}

use Scope::{Broker, Logging, Platform, Worker};

#[rustfmt::skip] // a table reads best as one
pub(super) const SETTINGS: &[Setting] = &[
    row(Platform, "IDV_URL", "URL", None, "Base URL of the identity-verification platform (required)"),
    row(Platform, "IDV_PUBLIC_URL", "URL", None, "Base URL of the links people open [default: the value of --idv-url]"),
    secret(row(Platform, "IDV_API_KEY", "KEY", None, "API key, sent verbatim as the Authorization header (required)")),
    row(Worker, "IDV_WORKFLOW_ID", "ID", None, "Workflow for requests that name none"),
    row(Worker, "IDV_TOKEN_TTL", "DURATION", Some("1h"), "Life asked for each token, in whole seconds"),
    row(Worker, "IDV_TIMEOUT", "DURATION", Some("10s"), "Limit of one platform call, from connect to last byte"),
    row(Worker, "IDV_RATE_LIMIT", "N/DURATION", None, "Most platform calls of all replicas together, such as 1000/1m [default: off]"),
    row(Platform, "IDV_ALLOW_HTTP", "BOOL", Some("false"), "Allow plain http to a platform that is not on this machine"),
    secret(row(Broker, "AMQP_URL", "URL", Some("amqp://guest:guest@127.0.0.1:5672/%2f"), "RabbitMQ; amqps:// for TLS")),
    secret(row(Worker, "REDIS_URL", "URL", Some("redis://127.0.0.1:6379/0"), "Redis; rediss:// for TLS")),
    row(Broker, "QUEUE", "NAME", Some("verification.requested"), "Request queue; its retry and dead queues are named after it"),
    row(Broker, "REQUEST_EXCHANGE", "NAME", Some("verification"), "Exchange that requests are published to"),
    row(Broker, "EVENT_EXCHANGE", "NAME", Some("handoff"), "Exchange that events are published to"),
    row(Broker, "DECLARE_TOPOLOGY", "BOOL", Some("true"), "Declare exchanges and queues; false only checks that they exist"),
    row(Worker, "CONCURRENCY", "N", Some("64"), "Requests in flight, and the prefetch"),
    row(Worker, "RETRY_BUDGET", "DURATION", Some("10s"), "Retrying in process, per delivery"),
    row(Broker, "RETRY_DELAYS", "LIST", Some("10s,1m,5m,15m"), "The retry queues, one delay after another"),
    row(Worker, "LINK_MIN_LIFE", "DURATION", Some("10m"), "Least life of a link that is handed out again; below the token's ttl"),
    secret(row(Worker, "CACHE_KEY", "LIST", None, "Seals what Redis holds: base64 of 32 bytes; of several, the first seals and all open")),
    row(Worker, "KEY_PREFIX", "TEXT", Some("handoff"), "First part of every Redis key"),
    row(Worker, "MAX_MESSAGE_BYTES", "N", Some("65536"), "Largest request body"),
    row(Worker, "HTTP_ADDR", "IP:PORT", Some("127.0.0.1:9464"), "Where /livez, /readyz and /metrics are served"),
    row(Worker, "SHUTDOWN_GRACE", "DURATION", Some("25s"), "Longest time from SIGTERM to exit"),
    row(Logging, "LOG", "DIRECTIVES", Some("info"), "What is logged, as tracing filter directives"),
    row(Logging, "LOG_FORMAT", "text|json", None, "How log lines are written [default: text on a terminal, else json]"),
];

/// What holds by default in the demo instead, as its help tells it.
const DEMO: [(&str, &str); 4] = [
    ("IDV_WORKFLOW_ID", DEMO_WORKFLOW),
    ("KEY_PREFIX", "one of its own for each run"),
    ("HTTP_ADDR", "any free port of this machine"),
    ("LOG", DEMO_LOG),
];
/// The demo's workflow, unless another is given.
pub const DEMO_WORKFLOW: &str = "demo";
/// What the demo logs, unless told otherwise.
pub const DEMO_LOG: &str = "warn";

impl Setting {
    /// The environment variable: `HANDOFF_IDV_URL`.
    pub(super) fn variable(&self) -> String {
        format!("HANDOFF_{}", self.name)
    }

    /// The flag without its dashes: `idv-url`.
    pub(super) fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// Its flags, with what holds by default: by itself, or in the command that is asked for help.
    fn args(&self, defaults: &[(&str, &str)]) -> Vec<Arg> {
        let mut help = self.help.to_owned();
        let own = defaults.iter().find(|(name, _)| *name == self.name);
        if let Some(default) = own.map(|(_, default)| *default).or(self.default) {
            help = format!("{help} [default: {default}]");
        }
        let arg = |flag: String, variable: String, value, help: String| {
            Arg::new(flag.clone())
                .long(flag)
                // Read by hand rather than by clap, which would show a value in its complaint.
                .value_parser(clap::value_parser!(OsString))
                .value_name(value)
                .help(format!("{help} [env: {variable}]"))
                .help_heading("Settings")
        };
        let mut args = vec![arg(self.flag(), self.variable(), self.value, help)];
        if self.value == "BOOL" {
            args[0] = args[0].clone().num_args(0..=1).default_missing_value("true");
        }
        if self.secret {
            let help =
                format!("File that holds --{}, so that it shows in no process list", self.flag());
            let (flag, variable) = (self.flag() + "-file", self.variable() + "_FILE");
            args.push(arg(flag, variable, "PATH", help));
        }
        args
    }
}

/// Every setting as it was given, unread. Flags win over the environment.
#[derive(Clone, Default)]
pub struct RawSettings {
    flags: Vec<(String, OsString)>,
}

impl RawSettings {
    /// What holds when nothing is given, whatever the environment says.
    pub(super) fn defaults() -> Self {
        let defaults = SETTINGS.iter().filter_map(|setting| Some((setting, setting.default?)));
        defaults
            .fold(Self::default(), |given, (setting, text)| given.with(&setting.variable(), text))
    }

    /// What was given by flag or variable, under the name of the variable.
    ///
    /// An own flag, be it the value's or its file's, hides both variables.
    pub(super) fn find(&self, setting: &Setting) -> Vec<(String, OsString)> {
        let file = |name: String| name + "_FILE";
        let names = |name: String| match setting.secret {
            true => vec![name.clone(), file(name)],
            false => vec![name],
        };
        let by_flag: Vec<_> = names(setting.variable())
            .into_iter()
            .filter_map(|name| {
                let given = self.flags.iter().find(|(flag, _)| *flag == name)?;
                Some((name, given.1.clone()))
            })
            .collect();
        if !by_flag.is_empty() {
            return by_flag;
        }
        names(setting.variable())
            .into_iter()
            .filter_map(|name| Some((name.clone(), std::env::var_os(&name)?)))
            .collect()
    }

    /// The same settings with one more, as if its flag had been given.
    #[must_use]
    pub fn with(mut self, variable: &str, value: impl Into<OsString>) -> Self {
        self.flags.retain(|(name, _)| name != variable);
        self.flags.push((variable.to_owned(), value.into()));
        self
    }

    /// The same settings with a value for one that was not given, by flag or by variable.
    #[must_use]
    pub fn or(self, variable: &str, value: impl Into<OsString>) -> Self {
        let setting = SETTINGS.iter().find(|setting| setting.variable() == variable);
        match setting.is_some_and(|setting| self.find(setting).is_empty()) {
            true => self.with(variable, value),
            false => self,
        }
    }

    fn from_matches(matches: &ArgMatches, scopes: &[Scope]) -> Self {
        let mut flags = Vec::new();
        for setting in SETTINGS.iter().filter(|s| scopes.contains(&s.scope)) {
            let mut take = |flag: String, variable: String| {
                if let Some(value) = matches.get_one::<OsString>(&flag) {
                    flags.push((variable, value.clone()));
                }
            };
            take(setting.flag(), setting.variable());
            if setting.secret {
                take(setting.flag() + "-file", setting.variable() + "_FILE");
            }
        }
        Self { flags }
    }
}

/// The settings a command takes, as clap arguments.
macro_rules! given_for {
    ($(#[$doc:meta])* $name:ident, $scopes:expr, $defaults:expr) => {
        $(#[$doc])*
        #[derive(Clone, Default)]
        pub struct $name(pub RawSettings);

        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                SETTINGS
                    .iter()
                    .filter(|setting| $scopes.contains(&setting.scope))
                    .flat_map(|setting| setting.args(&$defaults))
                    .fold(command, Command::arg)
            }
            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(RawSettings::from_matches(matches, &$scopes)))
            }
            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

given_for!(
    /// The settings of `handoff run`: all of them.
    RunFlags, [Scope::Platform, Scope::Broker, Scope::Worker, Scope::Logging],
    []
);
given_for!(
    /// The settings of `handoff demo`, which brings a platform of its own.
    DemoFlags, [Scope::Broker, Scope::Worker, Scope::Logging], DEMO
);
given_for!(
    /// The settings of commands that only speak to RabbitMQ.
    BrokerFlags, [Scope::Broker, Scope::Logging], []
);
given_for!(
    /// The settings of commands that only log.
    LogFlags, [Scope::Logging], []
);
