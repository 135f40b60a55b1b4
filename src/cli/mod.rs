//! The command line: one file per command.

mod completions;
mod dead_letters;
#[cfg(feature = "sandbox")]
mod demo;
mod doctor;
mod errors;
mod forget;
mod healthcheck;
#[cfg(not(feature = "sandbox"))]
mod left_out;
mod logging;
mod man;
mod output;
mod request;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod schema;
mod signals;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub use self::errors::CliError;

/// Turns verification requests on RabbitMQ into short-lived identity-verification links.
#[derive(Parser)]
#[command(name = "handoff", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = examples())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::RunArgs),
    #[cfg(feature = "sandbox")]
    Demo(demo::DemoArgs),
    #[cfg(not(feature = "sandbox"))]
    #[command(hide = true)]
    Demo(left_out::Args),
    Request(request::RequestArgs),
    Forget(forget::ForgetArgs),
    #[cfg(feature = "sandbox")]
    Sandbox(sandbox::SandboxArgs),
    #[cfg(not(feature = "sandbox"))]
    #[command(hide = true)]
    Sandbox(left_out::Args),
    DeadLetters(dead_letters::DeadLettersArgs),
    Healthcheck(healthcheck::HealthcheckArgs),
    Doctor(doctor::DoctorArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

fn examples() -> String {
    let demo = if cfg!(feature = "sandbox") {
        "\n  handoff demo                      # try it, with RabbitMQ and Redis on this machine"
    } else {
        ""
    };
    format!(
        "Examples:{demo}\n  \
        handoff doctor                    # check the set-up\n  \
        handoff request --user ann --qr   # request a link\n\n\
        For more about a command: handoff <command> --help"
    )
}

impl Cli {
    /// Parses the command line. On an error or a request for help, prints it.
    ///
    /// # Errors
    /// The exit status, after the error or help text was printed.
    pub fn from_command_line() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(errors::report)
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Why the command failed.
    pub async fn run(self) -> Result<(), CliError> {
        // All TLS connections of the process use this provider. An error means that it is installed.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        match self.command {
            Command::Run(args) => run::run(args).await,
            #[cfg(feature = "sandbox")]
            Command::Demo(args) => demo::run(args).await,
            #[cfg(feature = "sandbox")]
            Command::Sandbox(args) => sandbox::run(args).await,
            #[cfg(not(feature = "sandbox"))]
            Command::Demo(_) | Command::Sandbox(_) => Err(left_out::error()),
            Command::Request(args) => request::run(args).await,
            Command::Forget(args) => forget::run(args).await,
            Command::DeadLetters(args) => dead_letters::run(args).await,
            Command::Healthcheck(args) => healthcheck::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Schema(args) => schema::run(&args),
            Command::Completions(args) => completions::run(&args, Self::command()),
            Command::Man(args) => man::run(&args, Self::command()),
        }
    }
}
