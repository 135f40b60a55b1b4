//! What RabbitMQ says of an argument that is not what it was declared to be.

use std::fmt;

use lapin::types::{AMQPValue, FieldTable};

/// An argument, or another trait, that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name; where RabbitMQ's words cannot be read, the words.
    pub name: String,
    is: Side,
    ought: Side,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    /// It is not set.
    None,
    Text(String),
    Number(i64),
    /// Something that cannot be declared by an argument.
    Other(String),
}

impl Difference {
    /// Reads a refusal: `… inequivalent arg 'x' for queue 'q' in vhost '/': received the value 'a' of type
    /// 'longstr' but current is none`.
    pub(super) fn read(refusal: &str) -> Self {
        let read = || {
            let (_, rest) = refusal.split_once("inequivalent arg '")?;
            let (name, rest) = rest.split_once('\'')?;
            // The names of the queue and the virtual host stand between, and may hold anything.
            let (rest, is) = rest.rsplit_once(" but current is ")?;
            let (_, ought) = rest.rsplit_once(": received ")?;
            Some(Self { name: name.to_owned(), is: Side::read(is), ought: Side::read(ought) })
        };
        let unread = || Self { name: refusal.to_owned(), is: Side::None, ought: Side::None };
        read().unwrap_or_else(unread)
    }

    /// Makes the table say what is so. `false` where that cannot be said.
    pub(super) fn adopt(&self, table: &mut FieldTable) -> bool {
        if !self.name.starts_with("x-") {
            return false;
        }
        let value = match &self.is {
            Side::None => {
                let entries = table.inner().iter().filter(|(name, _)| name.as_str() != self.name);
                let entries = entries.map(|(name, value)| (name.clone(), value.clone()));
                *table = entries.collect::<std::collections::BTreeMap<_, _>>().into();
                return true;
            }
            Side::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Side::Number(number) => AMQPValue::LongLongInt(*number),
            Side::Other(_) => return false,
        };
        table.insert(self.name.as_str().into(), value);
        true
    }
}

impl Side {
    fn read(words: &str) -> Self {
        let words = words.trim_end_matches('.');
        if words == "none" {
            return Self::None;
        }
        let value =
            words.strip_prefix("the value '").and_then(|rest| rest.rsplit_once("' of type '"));
        match value {
            Some((value, kind)) if kind.starts_with("longstr") => Self::Text(value.to_owned()),
            Some((value, _)) => match value.parse() {
                Ok(number) => Self::Number(number),
                Err(_) => Self::Other(value.to_owned()),
            },
            None => Self::Other(words.trim_matches('\'').to_owned()),
        }
    }
}

/// Such as `x-overflow is drop-head, not reject-publish`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is == self.ought {
            return f.write_str(&self.name);
        }
        write!(f, "{} is {}, not {}", self.name, self.is, self.ought)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("unset"),
            Self::Text(text) if text.is_empty() => f.write_str("\"\""),
            Self::Text(text) | Self::Other(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(rest: &str) -> Difference {
        Difference::read(&format!(
            "PRECONDITION_FAILED - inequivalent arg 'x-a' for queue 'it's: received  but current is ' in \
             vhost '/': {rest}"
        ))
    }

    #[test]
    fn what_differs_is_read_and_can_be_declared() {
        let mut table = FieldTable::default();
        let text = refusal("received the value '' of type 'longstr' but current is none");
        assert_eq!(text.to_string(), "x-a is unset, not \"\"");
        table.insert("x-a".into(), AMQPValue::LongString("".into()));
        assert!(text.adopt(&mut table) && table.inner().is_empty());

        let number = refusal("received none but current is the value '7' of type 'signedint'");
        assert_eq!(number.to_string(), "x-a is 7, not unset");
        assert!(number.adopt(&mut table));
        assert_eq!(table.inner().get("x-a"), Some(&AMQPValue::LongLongInt(7)));

        let other = refusal("received 'true' but current is 'false'");
        assert_eq!(other.to_string(), "x-a is false, not true");
        assert!(!other.adopt(&mut table));
    }

    #[test]
    fn other_words_stay_as_they_are() {
        let other = Difference::read("PRECONDITION_FAILED - something else");
        assert_eq!(other.to_string(), "PRECONDITION_FAILED - something else");
        assert!(!other.adopt(&mut FieldTable::default()));
    }
}
