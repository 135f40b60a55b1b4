//! Why a command failed, and errors on the command line.

use std::{fmt, process::ExitCode};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{broker::BrokerError, config::ConfigErrors};

/// Why a command failed. Holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings are invalid.
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
    /// The arguments are invalid.
    #[error("{0}")]
    Usage(String),
    /// The command failed. The text says why, and how to fix it.
    #[error("{0}")]
    Failed(String),
    /// A second signal ended the command.
    #[error("stopped at once by a second signal")]
    CutShort,
}

impl CliError {
    /// Exit status 2 for invalid settings or arguments, 1 for a failure, 3 after a second signal.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
            Self::CutShort => ExitCode::from(3),
        }
    }

    pub(super) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// A failed connection to RabbitMQ, for commands that use an existing set-up.
    pub(super) fn not_connected(error: BrokerError) -> Self {
        Self::Failed(format!("{error}\nCheck HANDOFF_AMQP_URL, or run `handoff doctor`."))
    }
}

/// Prints an error on the command line, or the help text that was asked for. Returns the status.
///
/// An API key may contain a space. As a flag without quotes, its second half is an unexpected
/// argument, so unexpected arguments are not shown.
pub(super) fn report(error: &clap::Error) -> u8 {
    match unexpected_argument(error) {
        Some(message) => eprintln!("{message}"),
        // A closed stream is no error: its reader has seen enough.
        None => drop(error.print()),
    }
    u8::try_from(error.exit_code()).unwrap_or(2)
}

fn unexpected_argument(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = context(ContextKind::InvalidArg)
        .filter(|argument| argument.starts_with("--"))
        .and_then(|argument| argument.split('=').next());
    let message = match (flag, context(ContextKind::SuggestedArg)) {
        (Some(flag), Some(similar)) => {
            format!("error: unknown flag {flag}; did you mean {similar}?")
        }
        (Some(flag), None) => format!("error: unknown flag {flag}"),
        (None, _) => "error: unexpected argument (not shown: it may be part of a secret); quote \
                      values that contain spaces"
            .to_owned(),
    };
    let usage = error.get(ContextKind::Usage).map(|usage| format!("\n\n{usage}"));
    let usage = usage.unwrap_or_default();
    Some(format!("{message}{usage}\n\nFor more information, try --help."))
}
