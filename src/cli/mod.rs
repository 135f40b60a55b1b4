//! The command line: one file per command.

mod completions;
mod dead_letters;
mod demo;
mod doctor;
mod errors;
mod hints;
mod man;
mod progress;
mod qr;
mod request;
mod run;
mod sandbox;
mod schema;
mod signals;

use std::{
    fmt,
    io::{Write, stdout},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::ConfigErrors;

/// Turns verification requests on RabbitMQ into short-lived identity-verification links.
#[derive(Parser)]
#[command(name = "handoff", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    handoff demo                      # see it at work, on a RabbitMQ and a Redis of this machine\n  \
    handoff doctor                    # what is wrong here?\n  \
    handoff request --user ann --qr   # ask for a link\n\n\
    Each command has more: handoff <command> --help")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Request(request::RequestArgs),
    Sandbox(sandbox::SandboxArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Doctor(doctor::DoctorArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Cause a command did not do what it was asked to.
#[derive(Debug)]
pub enum CliError {
    /// The settings are wrong.
    Configuration(ConfigErrors),
    /// The arguments are wrong.
    Usage(String),
    /// It did not work out. Says why and what to do; holds no secret.
    Failed(String),
    /// A second signal came before it had ended in good order.
    CutShort,
}

impl CliError {
    /// 2 for what was told wrong, 1 for what went wrong, 3 for what was cut short by a second signal.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Configuration(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
            Self::CutShort => ExitCode::from(3),
        }
    }

    fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(mistakes) => mistakes.fmt(f),
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
            Self::CutShort => f.write_str("ended at once by a second signal"),
        }
    }
}

impl std::error::Error for CliError {}

impl From<ConfigErrors> for CliError {
    fn from(mistakes: ConfigErrors) -> Self {
        Self::Configuration(mistakes)
    }
}

impl Cli {
    /// Reads the command line. Where it says nothing to be done, be it a mistake or a call for help,
    /// that is told, and the exit status returned.
    ///
    /// # Errors
    /// The exit status.
    pub fn from_command_line() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| ExitCode::from(errors::tell(&error)))
    }
}

/// Does what the command line says.
///
/// # Errors
/// Cause that did not work out.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    // Every TLS connection of the process uses this one provider. It is set once, here; were one set
    // already, it would be the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.command {
        Command::Run(args) => run::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Request(args) => request::run(args).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// Prints a result, and a line's end.
fn say(what: impl fmt::Display) -> Result<(), CliError> {
    writeln!(stdout(), "{what}").map_err(CliError::failed)
}
