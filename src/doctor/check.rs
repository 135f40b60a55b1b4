//! One check: what was found, what it costs, how to fix it.

use std::time::Duration;

use serde::Serialize;

use crate::printable::escape;

/// The part of the set-up that a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Area {
    Settings,
    RabbitMq,
    Redis,
    Platform,
}

impl Area {
    /// The heading of the area.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Settings => "Settings",
            Self::RabbitMq => "RabbitMQ",
            Self::Redis => "Redis",
            Self::Platform => "Platform",
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// May be intended; does not change the exit status.
    Hint,
    /// Wrong.
    Finding,
}

/// The durations from which on a check is a hint, and a finding.
pub(super) struct Tolerance {
    pub(super) hint: Duration,
    pub(super) finding: Duration,
}

impl Tolerance {
    pub(super) fn verdict(&self, measured: Duration) -> Verdict {
        match measured {
            measured if measured < self.hint => Verdict::Ok,
            measured if measured < self.finding => Verdict::Hint,
            _ => Verdict::Finding,
        }
    }
}

/// The result of one check. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) area: Area,
    /// What was checked.
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
    /// Commands that fix it or show more. The reader replaces words in capitals.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) commands: Vec<String>,
}

impl Check {
    pub(super) fn new(name: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            // `examine` sets the area of all checks that an area returns.
            area: Area::Settings,
            name,
            verdict,
            what: what.into(),
            cost: None,
            remedy: None,
            commands: vec![],
        }
    }

    pub(super) fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, what)
    }

    pub(super) fn hint(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Hint, what)
    }

    pub(super) fn finding(name: &'static str, what: impl Into<String>) -> Self {
        Self::new(name, Verdict::Finding, what)
    }

    /// The same without what a terminal would execute: servers' texts are in some checks.
    pub(super) fn escaped(self) -> Self {
        Self {
            what: escape(&self.what),
            cost: self.cost.as_deref().map(escape),
            remedy: self.remedy.as_deref().map(escape),
            commands: self.commands.iter().map(|command| escape(command)).collect(),
            ..self
        }
    }

    pub(super) fn cost(mut self, cost: impl Into<String>) -> Self {
        self.cost = Some(cost.into());
        self
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Sets a remedy unless there is a more exact one.
    pub(super) fn or_remedy(self, remedy: &str) -> Self {
        if self.remedy.is_some() { self } else { self.remedy(remedy) }
    }

    pub(super) fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}
