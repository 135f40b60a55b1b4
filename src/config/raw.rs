//! Settings as the flags and the environment give them: text that is not parsed yet.

use std::{env, ffi::OsString};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::{
    setting::{Scope, Source, Spec},
    table::{self, ALL},
};

/// The demo's default workflow.
pub(crate) const DEMO_WORKFLOW: &str = "demo";
/// The demo's default log filter.
pub(crate) const DEMO_LOG: &str = "warn";
/// The defaults that differ in the demo, as its help text shows them.
static DEMO_DEFAULTS: [(&Spec, &str); 4] = [
    (&table::IDV_WORKFLOW_ID.spec, DEMO_WORKFLOW),
    (&table::KEY_PREFIX.spec, "unique for each run"),
    (&table::HTTP_ADDR.spec, "any free port of this machine"),
    (&table::LOG.spec, DEMO_LOG),
];

/// The text of each setting. Flags win over the environment, which is read when settings are parsed.
#[derive(Clone, Default)]
pub(crate) struct RawSettings {
    flags: Vec<(&'static Spec, Source, OsString)>,
}

impl RawSettings {
    /// The defaults, as if each was given by flag: this hides the environment.
    pub(super) fn defaults() -> Self {
        let defaults = ALL.iter().filter_map(|spec| Some((*spec, spec.default?)));
        defaults.fold(Self::default(), |raw, (spec, text)| raw.with(spec, text))
    }

    /// Every source that gives this setting a value.
    ///
    /// A flag, for the value or for its file, hides both variables.
    pub(super) fn find(&self, spec: &Spec) -> Vec<(Source, OsString)> {
        let by_flag: Vec<_> = self
            .flags
            .iter()
            .filter(|(flag, ..)| flag.name == spec.name)
            .map(|(_, source, value)| (*source, value.clone()))
            .collect();
        if !by_flag.is_empty() {
            return by_flag;
        }
        let variables = spec.sources().iter();
        variables
            .filter_map(|source| Some((*source, env::var_os(spec.variable(*source))?)))
            .collect()
    }

    /// Sets a value as if it was given by flag. Replaces any other source of the setting.
    #[must_use]
    pub(crate) fn with(mut self, spec: &'static Spec, value: impl Into<OsString>) -> Self {
        self.flags.retain(|(flag, ..)| flag.name != spec.name);
        self.flags.push((spec, Source::Value, value.into()));
        self
    }

    /// Sets a value unless the flags or the environment give one.
    #[must_use]
    pub(crate) fn with_default(self, spec: &'static Spec, value: impl Into<OsString>) -> Self {
        if self.find(spec).is_empty() { self.with(spec, value) } else { self }
    }

    fn from_matches(matches: &ArgMatches, scopes: &[Scope]) -> Self {
        let flags = in_scope(scopes).flat_map(|spec| {
            spec.sources().iter().filter_map(move |source| {
                let value = matches.get_one::<OsString>(&spec.flag(*source))?;
                Some((spec, *source, value.clone()))
            })
        });
        Self { flags: flags.collect() }
    }
}

fn in_scope(scopes: &[Scope]) -> impl Iterator<Item = &'static Spec> {
    ALL.iter().copied().filter(|spec| scopes.contains(&spec.scope))
}

/// The flags of a setting; `default` is what the help text shows.
fn args(spec: &'static Spec, default: Option<&str>) -> impl Iterator<Item = Arg> {
    let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    spec.sources().iter().map(move |source| {
        let (value_name, help) = match source {
            Source::Value => (spec.value_name, format!("{}{default}", spec.help.trim())),
            Source::File => {
                let flag = spec.flag(Source::Value);
                ("PATH", format!("File to read --{flag} from; keeps it out of process lists"))
            }
        };
        let arg = Arg::new(spec.flag(*source))
            .long(spec.flag(*source))
            // `Parser` parses the text: clap's own parsers quote the value in their errors.
            .value_parser(value_parser!(OsString))
            .value_name(value_name)
            .help(format!("{help} [env: {}]", spec.variable(*source)))
            .help_heading("Settings");
        if spec.is_switch { arg.num_args(0..=1).default_missing_value("true") } else { arg }
    })
}

fn add_args(command: Command, scopes: &[Scope], defaults: &[(&Spec, &str)]) -> Command {
    let args = in_scope(scopes).flat_map(|spec| {
        let own = defaults.iter().find(|(other, _)| other.name == spec.name);
        args(spec, own.map(|(_, default)| *default).or(spec.default))
    });
    args.fold(command, Command::arg)
}

/// The settings that a command reads, as clap arguments.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident, $scopes:expr, $defaults:expr) => {
        $(#[$doc])*
        #[derive(Clone, Default)]
        pub struct $name(pub(crate) RawSettings);

        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                add_args(command, &$scopes, &$defaults)
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

flags!(
    /// The settings of `handoff run`: all of them.
    RunFlags,
    [Scope::Platform, Scope::Broker, Scope::Worker, Scope::Probes, Scope::Logging],
    []
);
flags!(
    /// The settings of `handoff demo`, which starts its own platform.
    DemoFlags, [Scope::Broker, Scope::Worker, Scope::Probes, Scope::Logging], DEMO_DEFAULTS
);
flags!(
    /// The settings of commands that connect to RabbitMQ alone.
    BrokerFlags, [Scope::Broker, Scope::Logging], []
);
flags!(
    /// The settings of commands that only log.
    LogFlags, [Scope::Logging], []
);
flags!(
    /// The setting of `handoff healthcheck`.
    HealthcheckFlags, [Scope::Probes], []
);
