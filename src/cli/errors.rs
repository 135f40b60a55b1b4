//! Mistakes on the command line, told without what may be a secret.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Prints what is wrong, or the help that was asked for. Returns the exit status.
///
/// An API key may hold a space. Given as a flag without quotes, its second half is an argument that
/// nobody expects, and is not to be shown.
pub(super) fn tell(error: &clap::Error) -> u8 {
    match stray_argument(error) {
        Some(message) => eprintln!("{message}"),
        // Whoever closed the stream has no use for it.
        None => drop(error.print()),
    }
    u8::try_from(error.exit_code()).unwrap_or(2)
}

fn stray_argument(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg).filter(|argument| argument.starts_with("--"));
    let what = match flag.and_then(|flag| flag.split('=').next()) {
        Some(flag) => format!("error: there is no flag {flag}"),
        None => {
            "error: an argument is in nobody's place; it is not shown, since it may belong to a \
                 secret: put quotes around values that hold spaces"
                .to_owned()
        }
    };
    let tip = match (flag, text(ContextKind::SuggestedArg)) {
        (Some(_), Some(similar)) => format!("; is {similar} meant?"),
        _ => String::new(),
    };
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => format!("\n\n{usage}"),
        _ => String::new(),
    };
    Some(format!("{what}{tip}{usage}\n\nFor more, try --help."))
}
