//! `handoff doctor`: shows what is wrong, what it costs, and how to fix it.

use std::io::{IsTerminal, stdout};

use clap::Args;
use unicode_width::UnicodeWidthStr;

use super::{errors::CliError, output::print_text};
use crate::{
    config::{RunFlags, Settings},
    doctor::{Check, Probe, Verdict, examine},
    telemetry::logs,
};

/// Columns of a line.
const WIDTH: usize = 100;
/// The column where texts begin, after the verdict and the name of the check.
const INDENT: usize = 30;

/// Checks settings, RabbitMQ, Redis and platform, and reports how to fix what is wrong
///
/// Give it the settings of `handoff run`. It changes nothing: RabbitMQ is only queried, Redis gets one
/// key that is deleted at once, and the platform is only asked for its health, unless there is --probe. The
/// exit status is 1 if there is a finding; hints do not count.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    handoff doctor\n  \
    handoff doctor --probe          # requests a token from the platform, to test the API key\n  \
    handoff doctor --idv-flow deeplink --probe --workflow onboarding\n  \
    handoff doctor --json | jq 'select(.verdict == \"finding\")'")]
pub(super) struct DoctorArgs {
    /// Request one token from the platform, which expires after a second. In the one-call flow, make a
    /// session of --workflow, which ends after a second
    #[arg(long)]
    probe: bool,
    /// The workflow for --probe in the one-call flow
    #[arg(long, value_name = "ID", requires = "probe")]
    workflow: Option<String>,
    /// A former HANDOFF_QUEUE, to report whether its queues exist, fill up or have consumers; repeatable.
    /// The default name is checked as well, if HANDOFF_QUEUE is another
    #[arg(long, value_name = "NAME")]
    former_queue: Vec<String>,
    /// Print one JSON object a line: area, name, verdict, what, cost, remedy, commands
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: RunFlags,
}

pub(super) async fn run(args: DoctorArgs) -> Result<(), CliError> {
    let settings = Settings::parse(&args.settings)?;
    logs::init(&settings.log);
    let workflow_id = args.workflow;
    let probe = if args.probe { Probe::Call { workflow_id } } else { Probe::Connect };
    let checks = examine(&settings, &probe, &args.former_queue).await;
    let in_colour = stdout().is_terminal() && logs::colours_wanted();
    let text = if args.json { json_lines(&checks)? } else { page(&checks, in_colour) };
    match print_text(text) {
        // The status is that of the checks.
        Ok(()) | Err(CliError::ReaderGone) => {}
        Err(error) => return Err(error),
    }
    match count(&checks, Verdict::Finding) {
        0 => Ok(()),
        n => Err(CliError::Failed(format!("findings: {n}"))),
    }
}

fn json_lines(checks: &[Check]) -> Result<String, CliError> {
    let lines = checks.iter().map(|check| Ok(serde_json::to_string(check)? + "\n"));
    lines.collect::<Result<_, serde_json::Error>>().map_err(CliError::failed)
}

fn page(checks: &[Check], in_colour: bool) -> String {
    let mut page = String::new();
    let mut area = None;
    for check in checks {
        if area != Some(check.area) {
            area = Some(check.area);
            page += &format!("{}\n", paint(check.area.title(), "1", in_colour));
        }
        let (label, colour) = match check.verdict {
            Verdict::Ok => ("ok", "32"),
            Verdict::Hint => ("hint", "33"),
            Verdict::Finding => ("finding", "31"),
        };
        let verdict = paint(&format!("{label:<7}"), colour, in_colour);
        page += &format!("  {verdict}  {:<19}{}\n", check.name, wrap(&check.what));
        for (label, text) in [("cost", &check.cost), ("remedy", &check.remedy)] {
            if let Some(text) = text {
                page += &format!("{:INDENT$}{}\n", "", wrap(&format!("{label}: {text}")));
            }
        }
        // Commands are not wrapped, so that they can be copied.
        for command in &check.commands {
            page += &format!("{:INDENT$}$ {command}\n", "");
        }
    }
    let [findings, hints, ok] =
        [Verdict::Finding, Verdict::Hint, Verdict::Ok].map(|verdict| count(checks, verdict));
    page + &format!("findings: {findings}, hints: {hints}, ok: {ok}\n")
}

fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict == verdict).count()
}

/// Paints a text with an SGR code of ECMA-48.
fn paint(text: &str, sgr: &str, in_colour: bool) -> String {
    if in_colour { format!("\u{1b}[{sgr}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Wraps a text, and indents each line but the first. Does not break a word that exceeds a line.
fn wrap(text: &str) -> String {
    let mut lines = String::new();
    let mut left = WIDTH - INDENT;
    for word in text.split(' ') {
        let width = word.width();
        if !lines.is_empty() && width >= left {
            lines += &format!("\n{:INDENT$}", "");
            left = WIDTH - INDENT;
        } else if !lines.is_empty() {
            lines.push(' ');
            left = left.saturating_sub(1);
        }
        lines += word;
        left = left.saturating_sub(width);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_wrapped_and_long_words_stay_whole() {
        let text = format!(
            "{} {} {} end",
            "word ".repeat(20).trim_end(),
            "佐藤 ".repeat(30).trim_end(),
            "x".repeat(90)
        );
        let wrapped = wrap(&text);
        assert!(
            wrapped.lines().all(|line| line.width() <= WIDTH || line.contains("xxx")),
            "{wrapped}"
        );
        assert_eq!(wrapped.split_whitespace().collect::<Vec<_>>().join(" "), text);
    }
}
