//! Why a command failed, and errors on the command line.

use std::{
    fmt,
    io::{self, Write, stderr, stdout},
    process::ExitCode,
};

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{
    broker::BrokerError,
    config::ConfigErrors,
    printable::{escape, escape_lines},
};

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
    /// The reader of stdout, such as `head`, has closed it because it needs no more.
    #[error("stdout is closed")]
    ReaderGone,
}

impl CliError {
    /// Prints the error on stderr, and returns the exit status: 2 for invalid settings or arguments, 1 for
    /// a failure, 3 after a second signal, 0 where only the reader of stdout has gone.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Self::ReaderGone) {
            // The status reports the error even where stderr is closed or full.
            let _ = writeln!(stderr(), "handoff: {}", escape_lines(&self.to_string()));
        }
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
            Self::CutShort => ExitCode::from(3),
            Self::ReaderGone => ExitCode::SUCCESS,
        }
    }

    /// A failed write to stdout.
    pub(super) fn not_printed(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Failed(format!("cannot write to stdout: {error}")),
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
pub(super) fn report(mut error: clap::Error) -> ExitCode {
    escape_arguments(&mut error);
    if let Some(message) = unexpected_argument(&error) {
        let _ = writeln!(stderr(), "{message}");
    } else {
        let printed = error.print().and_then(|()| stdout().flush());
        if let (Err(failed), false) = (printed, error.use_stderr()) {
            return CliError::not_printed(failed).report();
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Escapes the arguments that clap repeats in its error, which may come from a script's input.
fn escape_arguments(error: &mut clap::Error) {
    let escaped = |(kind, value): (ContextKind, &ContextValue)| match value {
        ContextValue::String(text) => Some((kind, ContextValue::String(escape(text)))),
        ContextValue::Strings(texts) => {
            Some((kind, ContextValue::Strings(texts.iter().map(|text| escape(text)).collect())))
        }
        _ => None,
    };
    for (kind, value) in error.context().filter_map(escaped).collect::<Vec<_>>() {
        error.insert(kind, value);
    }
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
