//! Dead letters as text: a table for people, JSON for programs.

use std::time::{Duration, SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use comfy_table::{Table, presets::NOTHING};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use super::filter::age;
use crate::{
    broker::DeadLetter,
    cli::{errors::CliError, output::object},
    message::format_date_time,
    printable::escape,
};

/// A dead letter in a list. Holds no personal data.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    request_id: Option<String>,
    /// The queue that it came from.
    queue: Option<String>,
    reason: Option<String>,
    attempts: u32,
    failed_at: Option<String>,
    age_seconds: Option<u64>,
    detail: Option<String>,
}

impl Row {
    pub(super) fn new(letter: &DeadLetter) -> Self {
        Self {
            request_id: letter.request_id(),
            queue: letter.queue(),
            reason: letter.reason(),
            attempts: letter.delivery.previous_attempts(),
            failed_at: letter.failed_at().map(format_date_time),
            age_seconds: age(letter).map(|age| age.as_secs()),
            detail: letter.detail(),
        }
    }

    pub(super) fn json(&self) -> Result<Value, CliError> {
        serde_json::to_value(self).map_err(CliError::failed)
    }

    fn cells(&self) -> [String; 5] {
        let text = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), escape);
        [
            text(&self.request_id),
            text(&self.reason),
            self.attempts.to_string(),
            self.age_seconds.map_or("-".to_owned(), age_text),
            text(&self.detail),
        ]
    }
}

/// A table with headings. Columns are as wide on screen as their widest cell.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["REQUEST ID", "REASON", "ATTEMPTS", "AGE", "DETAIL"])
        .add_rows(rows.iter().map(Row::cells));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A whole dead letter: the fields of a list, the properties, the headers and the request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Whole {
    #[serde(flatten)]
    row: Row,
    properties: Value,
    headers: Value,
    /// The request as it is: with each digit of its numbers, and keys that are given twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    /// The request if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl Whole {
    pub(super) fn new(letter: &DeadLetter) -> Self {
        let message = &letter.delivery;
        let properties = message.properties();
        let text =
            |text: &Option<ShortString>| text.as_ref().map(|text| Value::from(text.as_str()));
        let properties = object([
            ("contentType", text(properties.content_type())),
            ("contentEncoding", text(properties.content_encoding())),
            ("correlationId", text(properties.correlation_id())),
            ("messageId", text(properties.message_id())),
            ("type", text(properties.kind())),
            ("appId", text(properties.app_id())),
            ("replyTo", text(properties.reply_to())),
            ("timestamp", properties.timestamp().map(timestamp_json)),
            ("priority", properties.priority().map(Value::from)),
            ("deliveryMode", properties.delivery_mode().map(Value::from)),
        ]);
        let text = std::str::from_utf8(message.body()).ok();
        Self {
            row: Row::new(letter),
            properties,
            headers: message.headers().map(table_json).unwrap_or_default(),
            body: text.map(raw),
            body_base64: text.is_none().then(|| BASE64_STANDARD.encode(message.body())),
        }
    }

    /// As JSON, on one line or on several.
    pub(super) fn json(&self, pretty: bool) -> Result<String, CliError> {
        let json =
            if pretty { serde_json::to_string_pretty(self) } else { serde_json::to_string(self) };
        json.map_err(CliError::failed)
    }
}

/// JSON as it is but for its line breaks, or text as a JSON string.
fn raw(text: &str) -> Box<RawValue> {
    // `Value` refuses what other parsers may refuse, such as half a surrogate pair.
    let json = match serde_json::from_str::<Value>(text) {
        // Strings contain no raw line breaks.
        Ok(_) => text.trim().replace(['\n', '\r'], " "),
        Err(_) => Value::from(text).to_string(),
    };
    RawValue::from_string(json).unwrap_or_default()
}

/// A date, or the number if that is not a valid date: AMQP defines seconds, but some clients and RabbitMQ's
/// AMQP 1.0 write milliseconds.
fn timestamp_json(seconds: u64) -> Value {
    const YEAR_10000: u64 = 253_402_300_800;
    if seconds >= YEAR_10000 {
        return seconds.into();
    }
    format_date_time(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()
}

fn table_json(table: &FieldTable) -> Value {
    table.inner().iter().map(|(name, value)| (name.as_str(), value_json(value))).collect()
}

fn value_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Float(value) => json!(value),
        AMQPValue::Double(value) => json!(value),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(value_json).collect(),
        AMQPValue::FieldTable(table) => table_json(table),
        AMQPValue::Timestamp(seconds) => json!(seconds),
        AMQPValue::ByteArray(bytes) => json!(BASE64_STANDARD.encode(bytes.as_slice())),
        AMQPValue::DecimalValue(value) => json!(format!("{value:?}")),
        AMQPValue::Void => Value::Null,
    }
}

fn age_text(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;

    fn row(id: &str, detail: Option<&str>) -> Row {
        Row {
            request_id: Some(id.to_owned()),
            queue: None,
            reason: Some("platform_rejected".to_owned()),
            attempts: 1,
            failed_at: None,
            age_seconds: Some(7_300),
            detail: detail.map(str::to_owned),
        }
    }

    #[test]
    fn wide_characters_keep_columns_aligned() {
        let table = table(&[row("佐藤", None), row("é-1", Some("why")), row("order-7781", None)]);
        assert_eq!(
            table.lines().collect::<Vec<_>>(),
            [
                "REQUEST ID  REASON             ATTEMPTS  AGE  DETAIL",
                "佐藤        platform_rejected  1         2h   -",
                "é-1         platform_rejected  1         2h   why",
                "order-7781  platform_rejected  1         2h   -",
            ]
        );
        let columns = |line: &str| line.split("platform").next().unwrap_or_default().width();
        assert!(table.lines().skip(1).all(|line| columns(line) == 12), "{table}");
    }

    #[test]
    fn body_is_shown_as_it_is_on_one_line() {
        for (body, shown) in [
            (
                "{\"a\":1.00000000000000000001,\r\n \"a\": [] }\n",
                "{\"a\":1.00000000000000000001,   \"a\": [] }",
            ),
            (r#"{"a":"\ud800"}"#, r#""{\"a\":\"\\ud800\"}""#),
            ("not\nJSON", r#""not\nJSON""#),
        ] {
            assert_eq!(raw(body).get(), shown);
        }
    }

    #[test]
    fn timestamp_in_milliseconds_is_shown_as_it_is() {
        assert_eq!(timestamp_json(1_798_794_000), "2027-01-01T09:00:00Z");
        assert_eq!(timestamp_json(1_798_794_000_000), 1_798_794_000_000_u64);
        assert_eq!(timestamp_json(u64::MAX), u64::MAX);
        assert_eq!(timestamp_json(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn control_characters_are_escaped() {
        let table = table(&[row("\u{1b}[2Jorder\n-1", Some("two\r\nlines"))]);
        assert_eq!(
            table.lines().nth(1),
            Some(r"\u{1b}[2Jorder\u{a}-1  platform_rejected  1         2h   two\u{d}\u{a}lines")
        );
    }
}
