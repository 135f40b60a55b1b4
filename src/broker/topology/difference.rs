//! An argument that differs, parsed from RabbitMQ's refusal of a declaration.

use std::fmt;

use lapin::types::{AMQPValue, FieldTable};

use crate::broker::amqp::without;

/// An argument, or another property, that differs from its declaration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The argument's name, or [`UNNAMED`].
    pub(crate) name: String,
    actual: ArgumentValue,
    expected: ArgumentValue,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum ArgumentValue {
    #[default]
    Unset,
    Text(String),
    Number(i64),
    /// A value that no argument can declare.
    Other(String),
}

/// Instead of a name, for a refusal that names no argument.
const UNNAMED: &str = "something that RabbitMQ does not name (see its log)";
/// What RabbitMQ writes for an argument that is not set.
const ABSENT: &str = "none";

impl Difference {
    /// Whether RabbitMQ refused because of a difference. It refuses with the same code where a limit on queues is
    /// reached.
    pub(super) fn is_named_in(refusal: &str) -> bool {
        refusal.contains("inequivalent arg")
    }

    /// Parses RabbitMQ's text.
    ///
    /// `… inequivalent arg 'x' for queue 'q' in vhost '/': received none but current is the value 'a' of
    /// type 'longstr'`
    pub(super) fn parse(refusal: &str) -> Self {
        let parse = || {
            let (_, rest) = refusal.split_once("inequivalent arg '")?;
            let (name, rest) = rest.split_once('\'')?;
            // From the right: the names of the queue and virtual host stand before, and may hold
            // any text.
            let (rest, actual) = rest.rsplit_once(" but current is ")?;
            let (_, expected) = rest.rsplit_once(": received ")?;
            Some(Self {
                name: name.to_owned(),
                actual: ArgumentValue::parse(actual),
                expected: ArgumentValue::parse(expected),
            })
        };
        // RabbitMQ's text is not passed on: it quotes the virtual host, which is part of the URL.
        parse().unwrap_or_else(|| Self { name: UNNAMED.to_owned(), ..Self::default() })
    }

    /// Sets the argument to its actual value. `false` if no argument can declare it.
    pub(super) fn adopt(&self, arguments: &mut FieldTable) -> bool {
        if !self.name.starts_with("x-") {
            return false;
        }
        let value = match &self.actual {
            ArgumentValue::Unset => {
                *arguments = without(arguments, &self.name);
                return true;
            }
            ArgumentValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
            ArgumentValue::Number(number) => AMQPValue::LongLongInt(*number),
            ArgumentValue::Other(_) => return false,
        };
        arguments.insert(self.name.as_str().into(), value);
        true
    }
}

impl ArgumentValue {
    fn parse(text: &str) -> Self {
        let text = text.trim_end_matches('.');
        if text == ABSENT {
            return Self::Unset;
        }
        let typed =
            text.strip_prefix("the value '").and_then(|rest| rest.rsplit_once("' of type '"));
        match typed {
            Some((value, kind)) if kind.starts_with("longstr") => Self::Text(value.to_owned()),
            Some((value, _)) => {
                value.parse().map_or_else(|_| Self::Other(value.to_owned()), Self::Number)
            }
            None => Self::Other(text.trim_matches('\'').to_owned()),
        }
    }
}

/// `x-overflow is drop-head, not reject-publish`, for example.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.actual == self.expected {
            return f.write_str(&self.name);
        }
        write!(f, "{} is {}, not {}", self.name, self.actual, self.expected)
    }
}

impl fmt::Display for ArgumentValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("unset"),
            Self::Text(text) if text.is_empty() => f.write_str("\"\""),
            Self::Text(text) | Self::Other(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(rest: &str) -> Difference {
        Difference::parse(&format!(
            "PRECONDITION_FAILED - inequivalent arg 'x-a' for queue 'it's: received  but current is ' in \
             vhost '/': {rest}"
        ))
    }

    #[test]
    fn actual_value_is_parsed_and_adopted() {
        let mut table = FieldTable::default();
        let text =
            difference(&format!("received the value '' of type 'longstr' but current is {ABSENT}"));
        assert_eq!(text.to_string(), "x-a is unset, not \"\"");
        table.insert("x-a".into(), AMQPValue::LongString("".into()));
        assert!(text.adopt(&mut table));
        assert!(table.inner().is_empty());

        let number = difference("received none but current is the value '7' of type 'signedint'");
        assert_eq!(number.to_string(), "x-a is 7, not unset");
        assert!(number.adopt(&mut table));
        assert_eq!(table.inner().get("x-a"), Some(&AMQPValue::LongLongInt(7)));

        let other = difference("received 'true' but current is 'false'");
        assert_eq!(other.to_string(), "x-a is false, not true");
        assert!(!other.adopt(&mut table));
    }

    #[test]
    fn unknown_text_is_not_passed_on() {
        let other = Difference::parse("PRECONDITION_FAILED - something else");
        assert_eq!(other.to_string(), UNNAMED);
        assert!(!other.adopt(&mut FieldTable::default()));
    }
}
