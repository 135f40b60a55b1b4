//! `handoff sandbox`: runs a simulated platform.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Arg, Args, ValueEnum, builder::BoolishValueParser};
use tokio::net::TcpListener;

use super::{errors::CliError, logging, output::print_line, signals};
use crate::{
    config::{LogFlags, LogSettings, RateLimit, parse_duration, parse_rate, read_secret_file},
    sandbox::{Options, Sandbox, TokenAlphabet, Webhook},
};

/// Simulates the platform: the calls of both flows, and the pages that people open
///
/// It keeps everything in memory and verifies no identity. The first line on stdout shows its base
/// URL; open that in a browser to see what it offers. While it runs, PUT /sandbox/faults makes calls
/// fail, GET /sandbox/calls lists the calls it received, and GET /sandbox/stats counts them.
#[derive(Args)]
#[command(mut_args(with_variable))]
#[command(after_help = "Examples:\n  \
    handoff sandbox --latency 80ms --jitter 40ms --failure-rate 0.05\n  \
    HANDOFF_IDV_URL=http://127.0.0.1:8085 HANDOFF_IDV_API_KEY=sandbox-key handoff run\n  \
    curl -X PUT http://127.0.0.1:8085/sandbox/faults -d '{\"session\":{\"status\":503}}'")]
pub(super) struct SandboxArgs {
    /// Address to listen on; port 0 selects a free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8085")]
    addr: SocketAddr,
    /// The API key that calls must send, compared byte for byte
    #[arg(long, value_name = "KEY", default_value = Options::DEFAULT_API_KEY)]
    api_key: String,
    /// Minimum duration of each call, such as 50ms
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    latency: Duration,
    /// Maximum random addition to the latency, uniformly distributed
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = parse_duration)]
    jitter: Duration,
    /// Share of calls that answer 503: 0.1 is one in ten
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    failure_rate: f64,
    /// Rate limit, such as 1000/1m: calls above it answer 429 with Retry-After [default: off]
    #[arg(long, value_name = "COUNT/DURATION", value_parser = parse_rate)]
    rate_limit: Option<RateLimit>,
    /// Characters of tokens
    #[arg(long, value_name = "KIND", default_value = "plain")]
    token_alphabet: Alphabet,
    /// Honour Idempotency-Key: answer a repeated session or deeplink call with the same session. The real
    /// platform is not known to do this
    #[arg(long, value_parser = BoolishValueParser::new())]
    idempotency: bool,
    /// How long a session lives, such as 17m, if that is less than its token [default: as its token]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    session_lifetime: Option<Duration>,
    /// Path prefix of everything it serves, such as /idv
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true, value_parser = path_prefix)]
    path_prefix: String,
    /// Base URL of the one-call flow's links and on the index page, if it differs from the address
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// URL to call when a session ends: finished, closed, or at the end of its lifetime. The call is a POST of
    /// {"sessionId": "…"}, tried up to 8 times until the answer is 2xx
    #[arg(long, value_name = "URL")]
    webhook_url: Option<String>,
    /// Secret that the calls carry in the header X-Webhook-Secret [default: none]
    #[arg(
        long,
        value_name = "SECRET",
        conflicts_with = "webhook_secret_file",
        requires = "webhook_url"
    )]
    webhook_secret: Option<String>,
    /// File to read --webhook-secret from; keeps it out of process lists
    #[arg(long, value_name = "PATH", requires = "webhook_url")]
    webhook_secret_file: Option<PathBuf>,
    #[command(flatten)]
    settings: LogFlags,
}

/// Names a flag's variable, such as HANDOFF_SANDBOX_API_KEY for --api-key.
fn with_variable(arg: Arg) -> Arg {
    // The flags of settings read their variables themselves. They alone have a heading.
    if arg.get_help_heading().is_some() {
        return arg;
    }
    let variable = format!("HANDOFF_SANDBOX_{}", arg.get_id().as_str().to_ascii_uppercase());
    arg.env(variable).hide_env_values(true)
}

#[derive(Clone, Copy, ValueEnum)]
enum Alphabet {
    /// tr-, letters and digits
    Plain,
    /// Characters that wrong encoding breaks: spaces, + / = & % ? #, quotes, non-ASCII letters
    Hostile,
}

pub(super) async fn run(args: SandboxArgs) -> Result<(), CliError> {
    logging::init(&LogSettings::parse(&args.settings)?);
    let signals = signals::listen()?;
    let addr = args.addr;
    let options = options(args).map_err(CliError::Usage)?;
    let listener = TcpListener::bind(addr).await.map_err(|error| {
        CliError::Failed(format!("cannot listen on {addr}: {error}; try --addr"))
    })?;
    let sandbox = Sandbox::start(listener, options).map_err(CliError::failed)?;
    match print_line(format_args!("sandbox: listening on {}", sandbox.url())) {
        // A closed stdout does not stop the sandbox.
        Ok(()) | Err(CliError::ReaderGone) => {}
        Err(error) => return Err(error),
    }
    tracing::info!(addr = %sandbox.addr(), "sandbox ready");
    signals.shutdown.cancelled().await;
    tracing::info!("sandbox stopping");
    signals.cut_short(sandbox.stop()).await
}

/// The options, or which one is invalid, without its value.
fn options(args: SandboxArgs) -> Result<Options, String> {
    let secret = match &args.webhook_secret_file {
        Some(file) => {
            let secret = read_secret_file(file);
            Some(secret.map_err(|why| format!("--webhook-secret-file: {why}"))?)
        }
        None => args.webhook_secret,
    };
    let webhook = args.webhook_url.map(|url| Webhook::new(&url, secret.as_deref())).transpose();
    let options = Options {
        api_key: args.api_key,
        latency: args.latency,
        jitter: args.jitter,
        failure_rate: args.failure_rate,
        rate_limit: args.rate_limit,
        token_alphabet: match args.token_alphabet {
            Alphabet::Plain => TokenAlphabet::Plain,
            Alphabet::Hostile => TokenAlphabet::Hostile,
        },
        honour_idempotency_key: args.idempotency,
        session_lifetime: args.session_lifetime,
        path_prefix: args.path_prefix,
        public_url: args.public_url,
        webhook: webhook.map_err(|error| error.to_string())?,
        seed: None,
    };
    options.validated().map_err(|error| error.to_string())
}

fn path_prefix(text: &str) -> Result<String, String> {
    let options = Options { path_prefix: text.to_owned(), ..Options::default() };
    options.validated().map(|options| options.path_prefix).map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be from 0 to 1, such as 0.1"),
    }
}
