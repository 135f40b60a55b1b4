//! Durations for people, and words for a shell.

use std::time::Duration;

/// Formats a duration in the largest unit that leaves no remainder; below a second in milliseconds.
pub(super) fn span(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0..1_000 => format!("{millis} ms"),
        _ if millis.is_multiple_of(3_600_000) => format!("{} h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{} min", millis / 60_000),
        1_000..10_000 if !millis.is_multiple_of(1_000) => {
            format!("{:.1} s", duration.as_secs_f64())
        }
        _ => format!("{} s", millis / 1_000),
    }
}

/// Quotes a word for a shell.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_has_the_largest_exact_unit() {
        for (millis, text) in [
            (250, "250 ms"),
            (1_500, "1.5 s"),
            (10_000, "10 s"),
            (60_000, "1 min"),
            (90_000, "90 s"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn quoted_word_is_one_word_to_a_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
