//! Log records.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;

use super::rows::{self, Rows};
use super::wire::{Malformed, Raw};

/// Adds the document of a log record.
pub(super) fn record(raw: Raw<'_>, rows: &mut Rows) -> Result<(), Malformed> {
    let record: LogRecord = raw.decode()?;
    let at = if record.time_unix_nano > 0 { record.time_unix_nano } else { record.observed_time_unix_nano };
    rows.row("log", at, |object| {
        object.time("observed_timestamp", record.observed_time_unix_nano);
        let level = level(record.severity_number, &record.severity_text);
        object.text("level", &level);
        if record.severity_number != 0 {
            object.signed("severity_number", record.severity_number.into());
        }
        if record.severity_text != level {
            object.text("severity_text", &record.severity_text);
        }
        object.text("event_name", &record.event_name);
        match record.body.as_ref().and_then(|body| body.value.as_ref()) {
            None => {}
            Some(Value::StringValue(text)) => {
                crate::document::scalar::write_text(text, object.key("message"));
            }
            Some(_) => rows::write_value(record.body.as_ref(), object.key("body")),
        }
        object.hex("trace_id", &record.trace_id);
        object.hex("span_id", &record.span_id);
        object.count("flags", record.flags.into());
        rows::error(&record.attributes, object);
        rows::attributes("attributes", &record.attributes, object);
        object.count("dropped_attributes_count", record.dropped_attributes_count.into());
    });
    Ok(())
}

/// The catalogue's word for how severe a record is; the sender's own if only that is known.
fn level(number: i32, text: &str) -> String {
    let level = match number {
        1..=4 => "TRACE",
        5..=8 => "DEBUG",
        9..=12 => "INFO",
        13..=16 => "WARN",
        17..=20 => "ERROR",
        21..=24 => "FATAL",
        _ => {
            return match text.to_ascii_uppercase().as_str() {
                "WARNING" => "WARN".into(),
                "ERR" => "ERROR".into(),
                "CRITICAL" => "FATAL".into(),
                other => other.into(),
            };
        }
    };
    level.into()
}
