//! One setting: its name, help, default and parser.

/// A value, or how to fix it. The text is static, so it cannot contain the value.
pub(super) type ParseResult<T> = Result<T, &'static str>;

/// Fails with `why` unless the condition is met.
pub(super) fn ensure(condition: bool, why: &'static str) -> ParseResult<()> {
    if condition { Ok(()) } else { Err(why) }
}

/// The group of commands that read a setting. A command ignores settings outside its groups, valid
/// or not; `handoff doctor` reads all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Commands that connect to RabbitMQ.
    Broker,
    /// Commands that run a worker: `run` and `demo`.
    Worker,
    /// `run` alone: the demo starts its own platform.
    Platform,
    /// Commands that serve or ask the probes.
    Probes,
    /// Commands that log.
    Logging,
}

/// The untyped part of a setting, from which its flags and help text are made.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The variable without its `HANDOFF_`, which also names the flag: `IDV_URL`, `--idv-url`.
    pub(super) name: &'static str,
    pub(super) scope: Scope,
    /// The placeholder of the value in the help text.
    pub(super) value_name: &'static str,
    pub(super) help: &'static str,
    /// The value of an unset setting, as text; `None` where the setting is required or optional.
    pub(super) default: Option<&'static str>,
    /// Whether the value can also be read from a file, named by `…_FILE`.
    pub(super) is_secret: bool,
    /// Whether the flag means `true` when it is given without a value.
    pub(super) is_switch: bool,
}

/// A setting that always has a value: it is required, or has a default.
pub(crate) struct Setting<T> {
    pub(crate) spec: Spec,
    pub(super) parse: fn(&str) -> ParseResult<T>,
    /// What the error for a missing value asks for; empty if there is a default.
    pub(super) ask: &'static str,
}

/// A setting that may be unset.
pub(crate) struct OptionalSetting<T> {
    pub(crate) spec: Spec,
    pub(super) parse: fn(&str) -> ParseResult<T>,
}

/// Where the text of a secret comes from: its own flag or variable, or the file that another names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Value,
    File,
}

impl Source {
    fn suffix(self) -> &'static str {
        match self {
            Self::Value => "",
            Self::File => "_FILE",
        }
    }
}

impl Spec {
    pub(super) const fn new(
        name: &'static str,
        scope: Scope,
        value_name: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, scope, value_name, help, default: None, is_secret: false, is_switch: false }
    }

    /// Makes the setting readable from a file.
    pub(super) const fn secret(mut self) -> Self {
        self.is_secret = true;
        self
    }

    /// Makes the bare flag mean `true`.
    pub(super) const fn switch(mut self) -> Self {
        self.is_switch = true;
        self
    }

    pub(super) const fn default<T>(
        mut self,
        default: &'static str,
        parse: fn(&str) -> ParseResult<T>,
    ) -> Setting<T> {
        self.default = Some(default);
        Setting { spec: self, parse, ask: "" }
    }

    pub(super) const fn required<T>(
        self,
        ask: &'static str,
        parse: fn(&str) -> ParseResult<T>,
    ) -> Setting<T> {
        Setting { spec: self, parse, ask }
    }

    pub(super) const fn optional<T>(self, parse: fn(&str) -> ParseResult<T>) -> OptionalSetting<T> {
        OptionalSetting { spec: self, parse }
    }

    /// The sources that the setting has.
    pub(super) fn sources(&self) -> &'static [Source] {
        if self.is_secret { &[Source::Value, Source::File] } else { &[Source::Value] }
    }

    /// The environment variable: `HANDOFF_IDV_URL`.
    pub(super) fn variable(&self, source: Source) -> String {
        format!("HANDOFF_{}{}", self.name, source.suffix())
    }

    /// The flag without its dashes: `idv-url`.
    pub(super) fn flag(&self, source: Source) -> String {
        format!("{}{}", self.name, source.suffix()).to_ascii_lowercase().replace('_', "-")
    }
}
