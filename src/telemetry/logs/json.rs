//! Formats a log line as one flat JSON object.
//!
//! The `json` formatter of tracing-subscriber 0.3.23 costs about 8,000 of the 286,000 instructions
//! of a request (2.7 %, callgrind): it passes each value through several adapters. Not reported upstream.

use std::fmt::{self, Write};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Writes `timestamp`, `level`, the event's fields, and `target`.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut now = String::new();
        SystemTime.format_time(&mut Writer::new(&mut now))?;
        let mut line = Line(Vec::with_capacity(256));
        line.push("timestamp", &now);
        line.push("level", event.metadata().level().as_str());
        event.record(&mut line);
        line.push("target", event.metadata().target());
        line.0.extend_from_slice(b"}\n");
        writer.write_str(std::str::from_utf8(&line.0).map_err(|_| fmt::Error)?)
    }
}

/// A JSON object without its closing brace.
struct Line(Vec<u8>);

impl Line {
    fn push<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        // Writing text or a number to a `Vec` cannot fail.
        let _ = serde_json::to_writer(&mut self.0, name);
        self.0.push(b':');
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field.name(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // If the value's `Debug` fails half-way, the line has the first half.
        let _ = write!(text, "{value:?}");
        self.push(field.name(), &text);
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use tracing_subscriber::{Layer, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_event_is_one_json_object_on_one_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).event_format(Json);
        let hostile = "\"quoted\"\n\u{1b}[31m\u{0}é\u{2028}";
        let error: &(dyn std::error::Error + 'static) = &io::Error::other(hostile);
        let absent = None::<&str>;
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(layer.boxed()),
            || {
                tracing::info!(
                    text = hostile,
                    present = Some("there"),
                    absent,
                    number = 7_u64,
                    negative = -7_i64,
                    "said \"so\""
                );
                tracing::warn!(half = 0.5, nan = f64::NAN, yes = true, %hostile, quoted = ?hostile, error);
            },
        );
        let printed = String::from_utf8(lines.0.lock().clone()).unwrap();
        let (_, after_the_time) = printed.split_once("Z\",").unwrap();
        assert!(after_the_time.starts_with(r#""level":"INFO","message":"said \"so\"","text":"#));
        let target = module_path!();
        assert!(printed.ends_with(&format!("\"target\":\"{target}\"}}\n")));
        let mut parsed = printed.lines().map(without_timestamp);
        let first = json!({
            "level": "INFO", "message": "said \"so\"", "text": hostile, "present": "there", "number": 7,
            "negative": -7, "target": target,
        });
        assert_eq!(parsed.next(), Some(first));
        let second = json!({
            "level": "WARN", "half": 0.5, "nan": null, "yes": true, "hostile": hostile,
            "quoted": format!("{hostile:?}"), "error": hostile, "target": target,
        });
        assert_eq!(parsed.next(), Some(second));
        assert_eq!(parsed.next(), None);
    }

    fn without_timestamp(line: &str) -> Value {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        let time = time.as_str().unwrap();
        assert!(crate::message::parse_date_time(time).is_some() && time.ends_with('Z'), "{time}");
        line
    }
}
