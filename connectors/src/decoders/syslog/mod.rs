//! The `syslog` decoder: RFC 5424 strictly, RFC 3164 tolerantly.
//!
//! ```text
//! message ─┬─ `<PRI>1 ` ─► rfc5424 ─► structured ─┐
//!          └─ else ──────► rfc3164 ───────────────┴─► parsed: the parts ─► columns
//! ```

mod parsed;
mod rfc3164;
mod rfc5424;
mod structured;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::schema::TYPE_KEY;
use logdrive_schemas::{Chunk, FieldType, Layout, RowSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use self::parsed::{FACILITIES, Parsed, SEVERITIES};
use self::rfc3164::Receipt;
use self::structured::Reader;
use super::columns::{Columns, Declared, Slot, add_field};
use super::scalars;
use super::text::CharsetErrors;
use super::texts::{self, Failure, Row};
use super::views::View;
use crate::decoder::{Decoded, Decoder, DecoderConfig, Demand};
use crate::document::JSON_TEXT;

/// Which dialect messages are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SyslogFormat {
    /// A message with the version `1` and a space behind its priority is RFC 5424, any other is RFC 3164.
    #[default]
    Auto,
    /// RFC 3164 and whatever is sent in its name.
    Rfc3164,
    /// RFC 5424.
    Rfc5424,
}

/// Decodes syslog messages.
///
/// The fields have the names of ECS:
///
/// | field | what |
/// |---|---|
/// | `@timestamp: timestamp` | the message's time; when it was received if it has none |
/// | `message: string` | the text, without a byte order mark |
/// | `host.hostname: string` | HOSTNAME |
/// | `log.syslog.priority: int64` | PRI; 13, user.notice, for a message without one |
/// | `log.syslog.facility.code: int64`, `.name: string` | `kern`, `user`, `mail`, `daemon`, `auth`, `syslog`, `lpr`, `news`, `uucp`, `cron`, `authpriv`, `ftp`, `ntp`, `audit`, `alert`, `clock`, `local0` to `local7` |
/// | `log.syslog.severity.code: int64`, `.name: string` | `emerg`, `alert`, `crit`, `err`, `warning`, `notice`, `info`, `debug` |
/// | `log.syslog.version: string` | `1`, or null for RFC 3164 |
/// | `log.syslog.appname`, `log.syslog.procid`, `log.syslog.msgid: string` | APP-NAME, PROCID, MSGID; tag and process ID of RFC 3164 |
/// | `log.syslog.structured_data: string` | the structured data as JSON, `{"exampleSDID@32473":{"iut":"3"}}`; in documents an object. A parameter that is there more than once is a list |
///
/// A declared schema picks from these. It may also use `log.level` (the severity's name), `log.syslog.hostname` and
/// `host: string` (HOSTNAME), and declare parameters of the structured data as columns of type `string`, `int64`,
/// `float64` or `ip`: `structured_data: { "exampleSDID@32473": { iut: int64 } }`. Of a parameter that is there more than
/// once such a column has the first.
///
/// RFC 5424 is read strictly: what its grammar has not is a reject. RFC 3164 is read tolerantly: what is missing is
/// null, and what is not understood is the message. There, a time without a year is the latest such time that is not
/// more than a day in the future; times with a year and those of RFC 3339 are read, too. A tag ends with a colon and a
/// space, or with a process ID in brackets; what begins with `%`, as Cisco's messages do, is no tag.
///
/// The reason of a reject begins with one of these codes:
///
/// - `empty`: no bytes.
/// - `invalid_utf8`: not UTF-8, unless `charset_errors` says otherwise.
/// - `invalid_priority`, `invalid_version`, `unsupported_version`, `invalid_timestamp`, `invalid_hostname`,
///   `invalid_appname`, `invalid_procid`, `invalid_msgid`, `invalid_structured_data`: not as RFC 5424 has it.
/// - `invalid_parameter`: a declared parameter's value is not of its type.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// Which dialect: `auto` looks at each message, `rfc5424` and `rfc3164` take every message as such.
    #[serde(default)]
    format: SyslogFormat,
    /// What times of RFC 3164 are in, which name no zone: `UTC`, or an offset from it such as `+02:00`.
    #[serde(default, deserialize_with = "read_offset")]
    #[schemars(with = "String")]
    timezone: i64,
    /// What to do with a message that is not UTF-8: `reject` or `replace`.
    #[serde(default)]
    charset_errors: CharsetErrors,
}

fn read_offset<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    let text = String::deserialize(from)?;
    let offset = match *text.as_bytes() {
        _ if text.eq_ignore_ascii_case("utc") || text == "Z" => Some(0),
        [sign, h1, h2, b':', m1, m2] => super::clock::offset(sign, [h1, h2], [m1, m2]),
        _ => None,
    };
    offset.ok_or_else(|| {
        serde::de::Error::custom(format!("`{text}` is no zone, write `UTC` or an offset such as `+02:00`"))
    })
}

impl Component for Syslog {
    const NAME: &'static str = "syslog";
    const EXAMPLE: &'static str = "type: syslog\nformat: auto\ntimezone: \"+02:00\"";
}

/// A part of a message that becomes a column.
#[derive(Clone, Copy, Debug)]
enum Part {
    Appname,
    FacilityCode,
    FacilityName,
    Hostname,
    Message,
    Msgid,
    Priority,
    Procid,
    SeverityCode,
    SeverityName,
    StructuredData,
    Version,
}

/// The fields, and whether they are there without a declared schema.
const FIELDS: &[(&str, Part, bool)] = &[
    ("message", Part::Message, true),
    ("host.hostname", Part::Hostname, true),
    ("log.syslog.priority", Part::Priority, true),
    ("log.syslog.facility.code", Part::FacilityCode, true),
    ("log.syslog.facility.name", Part::FacilityName, true),
    ("log.syslog.severity.code", Part::SeverityCode, true),
    ("log.syslog.severity.name", Part::SeverityName, true),
    ("log.syslog.version", Part::Version, true),
    ("log.syslog.appname", Part::Appname, true),
    ("log.syslog.procid", Part::Procid, true),
    ("log.syslog.msgid", Part::Msgid, true),
    (STRUCTURED_DATA, Part::StructuredData, true),
    ("log.level", Part::SeverityName, false),
    ("log.syslog.hostname", Part::Hostname, false),
    ("host", Part::Hostname, false),
];

const STRUCTURED_DATA: &str = "log.syslog.structured_data";

impl Part {
    fn is_number(self) -> bool {
        matches!(self, Self::FacilityCode | Self::Priority | Self::SeverityCode)
    }
}

/// A parameter of the structured data that is a column.
#[derive(Clone, Debug)]
struct Param {
    id: String,
    name: String,
    slot: Slot,
}

impl DecoderConfig for Syslog {
    fn default_schema(&self) -> RowSchema {
        let mut fields = vec![(RowSchema::EVENT_TIME.into(), FieldType::Timestamp)];
        for (name, part, _) in FIELDS.iter().filter(|(_, _, by_default)| *by_default) {
            let field_type = if part.is_number() { FieldType::Int64 } else { FieldType::String };
            add_field(&mut fields, name, field_type);
        }
        RowSchema::of_fields(fields)
    }

    fn build(self, demand: &Demand) -> Result<Box<dyn Decoder>, ConfigError> {
        let (columns, declared) = Columns::declare(&demand.schema, Self::NAME)?;
        let mut targets = Targets::default();
        for field in &declared {
            targets.aim(field, &demand.schema.event_time)?;
        }
        let schema = demand.schema.arrow();
        let fields = schema.fields().iter().map(|field| marked(field, STRUCTURED_DATA));
        let short = |name: &&str| View::short(name).expect("the names are short");
        Ok(Box::new(SyslogDecoder {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            columns,
            charset_errors: self.charset_errors,
            messages: Messages {
                format: self.format,
                offset: self.timezone,
                targets,
                reader: Reader::default(),
                facilities: FACILITIES.iter().map(short).collect(),
                severities: SEVERITIES.iter().map(short).collect(),
            },
        }))
    }
}

/// The field with text at `path` marked as JSON text, so that documents have it as an object.
fn marked(field: &FieldRef, path: &str) -> FieldRef {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    match field.data_type() {
        _ if field.name() != name => Arc::clone(field),
        DataType::Utf8View if rest.is_empty() => {
            let metadata = [(TYPE_KEY.to_owned(), JSON_TEXT.to_owned())];
            Arc::new(field.as_ref().clone().with_metadata(metadata.into()))
        }
        DataType::Struct(members) => {
            let members = members.iter().map(|member| marked(member, rest)).collect();
            Arc::new(Field::new(name, DataType::Struct(members), field.is_nullable()))
        }
        _ => Arc::clone(field),
    }
}

/// Which columns the parts go to.
#[derive(Default)]
struct Targets {
    time: Option<usize>,
    /// Columns of text, and of integers.
    texts: Vec<(Part, usize)>,
    integers: Vec<(Part, usize)>,
    params: Vec<Param>,
    structured_data: Option<usize>,
}

impl Targets {
    fn aim(&mut self, field: &Declared, event_time: &str) -> Result<(), ConfigError> {
        if let ([log, syslog, data, id, name], slot) = (field.path.as_slice(), field.slot)
            && [log, syslog, data].into_iter().eq(STRUCTURED_DATA.split('.'))
        {
            if let Slot::Time(_) = slot {
                return Err(field.mismatch(Syslog::NAME, "parameters are string, int64, float64 or ip"));
            }
            self.params.push(Param { id: id.clone(), name: name.clone(), slot });
            return Ok(());
        }
        let name = field.name();
        if name == event_time {
            let Slot::Time(column) = field.slot else {
                let because = format!("it is timestamp, not {}", field.slot.type_name());
                return Err(field.mismatch(Syslog::NAME, &because));
            };
            self.time = Some(column);
            return Ok(());
        }
        let Some((_, part, _)) = FIELDS.iter().find(|(known, _, _)| *known == name) else {
            let mut names: Vec<_> = FIELDS.iter().map(|(name, _, _)| *name).collect();
            names.push(event_time);
            return Err(field.unknown(Syslog::NAME, &names));
        };
        match (part, field.slot) {
            (Part::StructuredData, Slot::Text(column)) => self.structured_data = Some(column),
            (part, Slot::Integer(column)) if part.is_number() => self.integers.push((*part, column)),
            (part, Slot::Text(column)) if !part.is_number() => self.texts.push((*part, column)),
            (part, slot) => {
                let expected = if part.is_number() { "int64" } else { "string" };
                let because = format!("it is {expected}, not {}", slot.type_name());
                return Err(field.mismatch(Syslog::NAME, &because));
            }
        }
        Ok(())
    }
}

struct SyslogDecoder {
    schema: SchemaRef,
    columns: Columns,
    charset_errors: CharsetErrors,
    messages: Messages,
}

/// What is known of messages before they come.
struct Messages {
    format: SyslogFormat,
    /// Seconds east of UTC.
    offset: i64,
    targets: Targets,
    reader: Reader,
    facilities: Vec<View>,
    severities: Vec<View>,
}

impl Messages {
    #[inline]
    fn parse(&mut self, text: &str, received_at: i64, row: &mut Row<'_>) -> Result<(), Failure> {
        if text.is_empty() {
            return Err(Failure::new("empty", "no bytes"));
        }
        let strict = match self.format {
            SyslogFormat::Auto => is_rfc5424(text.as_bytes()),
            SyslogFormat::Rfc3164 => false,
            SyslogFormat::Rfc5424 => true,
        };
        let mut parsed = if strict {
            rfc5424::header(text)?
        } else {
            rfc3164::parse(text, Receipt { received_at, offset: self.offset })
        };
        if let Some(rest) = parsed.structured {
            let read = self.reader.read(rest, &self.targets.params, |param, value| put(param, value, row))?;
            if let (Some(column), Some(_)) = (self.targets.structured_data, read) {
                let view = row.arena.copy(&self.reader.json);
                row.columns.texts[column].push(view);
            }
            parsed.message = rfc5424::message(&rest[read.unwrap_or(1)..])?;
        }
        self.put(&parsed, received_at, row);
        Ok(())
    }

    #[inline]
    fn put(&self, parsed: &Parsed<'_>, received_at: i64, row: &mut Row<'_>) {
        if let Some(column) = self.targets.time {
            row.columns.integers[column].push(parsed.time.unwrap_or(received_at));
        }
        let (facility, severity) = (parsed.priority / 8, parsed.priority % 8);
        for (part, column) in &self.targets.integers {
            let number = match part {
                Part::FacilityCode => facility,
                Part::SeverityCode => severity,
                _ => parsed.priority,
            };
            row.columns.integers[*column].push(i64::from(number));
        }
        for (part, column) in &self.targets.texts {
            let text = match part {
                Part::FacilityName => {
                    row.columns.texts[*column].push(self.facilities[usize::from(facility)]);
                    continue;
                }
                Part::SeverityName => {
                    row.columns.texts[*column].push(self.severities[usize::from(severity)]);
                    continue;
                }
                Part::Appname => parsed.appname,
                Part::Hostname => parsed.hostname,
                Part::Msgid => parsed.msgid,
                Part::Procid => parsed.procid,
                Part::Version => parsed.version,
                _ => parsed.message,
            };
            if let Some(text) = text {
                row.text(*column, text);
            }
        }
    }
}

/// Whether the version of RFC 5424 stands behind the priority.
#[inline]
fn is_rfc5424(text: &[u8]) -> bool {
    parsed::priority(text).is_some_and(|(_, len)| text[len..].starts_with(b"1 "))
}

/// Puts the value of a parameter into its column.
fn put(param: &Param, value: &str, row: &mut Row<'_>) -> Result<(), Failure> {
    let fits = match param.slot {
        Slot::Float(column) => scalars::float(value).map(|value| row.columns.floats[column].push(value)),
        Slot::Integer(column) | Slot::Time(column) => {
            scalars::integer(value).map(|value| row.columns.integers[column].push(value))
        }
        Slot::Ip(column) => scalars::is_ip(value).then(|| row.text(column, value)),
        Slot::Text(column) => {
            row.text(column, value);
            Some(())
        }
    };
    fits.ok_or_else(|| {
        let value: String = value.chars().take(80).collect();
        let what = format!("`{}` of `{}` is no {}: `{value}`", param.name, param.id, param.slot.type_name());
        Failure::new("invalid_parameter", what)
    })
}

impl Decoder for SyslogDecoder {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn layout(&self) -> Layout {
        Layout::Columns
    }

    fn decode(&mut self, chunk: &Chunk) -> Decoded {
        let messages = &mut self.messages;
        texts::decode(chunk, &self.schema, &mut self.columns, self.charset_errors, |text, row| {
            messages.parse(text, chunk.received_at, row)
        })
    }
}
