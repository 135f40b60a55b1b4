//! Log lines as JSON: one flat object each.
//!
//! The formatter that comes with the subscriber writes each word through several adapters, which made
//! the line of a request a tenth of what a reused link costs. This one fills a buffer.

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

/// The time, the level, what the event says, and where it comes from.
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
        line.put("timestamp", &now);
        line.put("level", event.metadata().level().as_str());
        event.record(&mut line);
        line.put("target", event.metadata().target());
        line.0.extend_from_slice(b"}\n");
        writer.write_str(std::str::from_utf8(&line.0).map_err(|_| fmt::Error)?)
    }
}

/// An object that is not closed yet.
struct Line(Vec<u8>);

impl Line {
    fn put<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        // Text and numbers: neither they nor the buffer can fail.
        let _ = serde_json::to_writer(&mut self.0, name);
        self.0.push(b':');
        let _ = serde_json::to_writer(&mut self.0, value);
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // What a value can say of itself until it fails.
        let _ = write!(text, "{value:?}");
        self.put(field.name(), &text);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing_subscriber::{Layer, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_is_told_is_one_object_on_a_line() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).event_format(Json);
        let rude = "\"quoted\"\n\u{1b}[31m\u{0}é\u{2028}";
        let error: &(dyn std::error::Error + 'static) = &io::Error::other(rude);
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(layer.boxed()),
            || {
                let (some, none) = (Some("there"), None::<&str>);
                tracing::info!(
                    text = rude,
                    some,
                    none,
                    number = 7_u64,
                    below = -7_i64,
                    "said \"so\""
                );
                tracing::warn!(half = 0.5, none = f64::NAN, yes = true, %rude, quoted = ?rude, error);
            },
        );
        let printed = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let (_, after_the_time) = printed.split_once("Z\",").unwrap();
        assert!(after_the_time.starts_with(r#""level":"INFO","message":"said \"so\"","text":"#));
        assert!(printed.ends_with(&format!("\"target\":\"{}\"}}\n", module_path!())));
        let mut read = printed.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
            let time = time.as_str().unwrap().to_owned();
            assert!(
                crate::message::parse_date_time(&time).is_some() && time.ends_with('Z'),
                "{time}"
            );
            line
        });
        let target = module_path!();
        let first = json!({
            "level": "INFO", "message": "said \"so\"", "text": rude, "some": "there", "number": 7,
            "below": -7, "target": target,
        });
        assert_eq!(read.next(), Some(first));
        let second = json!({
            "level": "WARN", "half": 0.5, "none": null, "yes": true, "rude": rude,
            "quoted": format!("{rude:?}"), "error": rude, "target": target,
        });
        assert_eq!(read.next(), Some(second));
        assert_eq!(read.next(), None);
    }
}
