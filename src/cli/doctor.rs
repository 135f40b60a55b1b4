//! `handoff doctor`: what is wrong, what it costs, what mends it.

use std::io::{IsTerminal, Write, stdout};

use clap::Args;

use super::CliError;
use crate::{
    config::{RunFlags, Settings},
    doctor::{Check, Verdict, examine},
    telemetry::logs,
};

/// Most letters on a line.
const WIDTH: usize = 100;
/// Where the text begins: beside the verdict and the name of the check.
const INDENT: usize = 30;

/// Looks for what is wrong with settings, RabbitMQ, Redis and platform, and says what mends it
///
/// Give it the settings of `handoff run`. It changes nothing: RabbitMQ is only asked, Redis gets one key
/// that goes at once, and the platform is not called unless --probe says so. The exit status is 1 if
/// there is a finding; hints do not count.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff doctor\n  \
    handoff doctor --probe          # asks the platform for a token, to see whether the key is good\n  \
    handoff doctor --json | jq 'select(.verdict == \"finding\")'")]
pub(super) struct DoctorArgs {
    /// Ask the platform for one token that lives for a second
    #[arg(long)]
    probe: bool,
    /// Print a JSON object a line: area, name, verdict, what, cost, remedy, commands
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: RunFlags,
}

pub(super) async fn run(args: DoctorArgs) -> Result<(), CliError> {
    let settings = Settings::parse(&args.settings)?;
    logs::init(&settings.log);
    let checks = examine(&settings, args.probe).await;
    let text = match args.json {
        true => lines(&checks)?,
        false => page(&checks, stdout().is_terminal() && logs::colours_wanted()),
    };
    stdout().write_all(text.as_bytes()).map_err(CliError::failed)?;
    match count(&checks, Verdict::Finding) {
        0 => Ok(()),
        1 => Err(CliError::Failed("there is a finding".to_owned())),
        n => Err(CliError::Failed(format!("there are {n} findings"))),
    }
}

fn lines(checks: &[Check]) -> Result<String, CliError> {
    let lines = checks.iter().map(|check| Ok(serde_json::to_string(check)? + "\n"));
    lines.collect::<Result<_, serde_json::Error>>().map_err(CliError::failed)
}

fn page(checks: &[Check], colours: bool) -> String {
    let mut page = String::new();
    let mut area = "";
    for check in checks {
        if area != check.area {
            area = check.area;
            let name = match area {
                "settings" => "Settings",
                "rabbitmq" => "RabbitMQ",
                "redis" => "Redis",
                _ => "Platform",
            };
            page += &format!("{}\n", painted(name, "1", colours));
        }
        let (word, colour) = match check.verdict {
            Verdict::Ok => ("ok", "32"),
            Verdict::Hint => ("hint", "33"),
            Verdict::Finding => ("finding", "31"),
        };
        let verdict = painted(&format!("{word:<7}"), colour, colours);
        page += &format!("  {verdict}  {:<19}{}\n", check.name, wrapped(&check.what));
        for (what, text) in [("costs", &check.cost), ("mend", &check.remedy)] {
            if let Some(text) = text {
                let text = wrapped(&format!("{what}: {text}"));
                page += &format!("{:INDENT$}{text}\n", "");
            }
        }
        // Whole, to be copied.
        for command in &check.commands {
            page += &format!("{:INDENT$}$ {command}\n", "");
        }
    }
    let (findings, hints) = (count(checks, Verdict::Finding), count(checks, Verdict::Hint));
    let well = checks.len() - findings - hints;
    page + &format!("findings: {findings}, hints: {hints}, ok: {well}\n")
}

fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict == verdict).count()
}

fn painted(text: &str, colour: &str, colours: bool) -> String {
    match colours {
        true => format!("\u{1b}[{colour}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    }
}

/// Lines that fit, each but the first behind the indent. What is longer than a line stays whole.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut left = WIDTH - INDENT;
    for word in text.split(' ') {
        let length = word.chars().count();
        if !lines.is_empty() && length >= left {
            lines += &format!("\n{:INDENT$}", "");
            left = WIDTH - INDENT;
        } else if !lines.is_empty() {
            lines.push(' ');
            left = left.saturating_sub(1);
        }
        lines += word;
        left = left.saturating_sub(length);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_wrapped_and_long_words_kept() {
        let text = format!("{} {} end", "word ".repeat(20).trim_end(), "x".repeat(90));
        let wrapped = wrapped(&text);
        assert!(
            wrapped.lines().all(|line| line.len() <= WIDTH || line.contains("xxx")),
            "{wrapped}"
        );
        assert_eq!(wrapped.split_whitespace().collect::<Vec<_>>().join(" "), text);
    }
}
