//! The `access_log` decoder: lines that web servers write about requests.
//!
//! ```text
//! format ─► literals and variables ─┐
//! schema ─► field ◄── variable ─────┴─► per variable: what to make of its text (a target)
//! line   ─► one pass from literal to literal, each text to its targets
//! ```
//!
//! No regular expression: a line is cut at the literal text of the format, found with SIMD. Text columns are views into
//! the chunk; only text with an escape in it is copied.

mod fields;
mod format;
#[cfg(test)]
mod tests;
mod values;

use arrow::datatypes::SchemaRef;
use logdrive_schemas::component::{Component, ConfigError};
use logdrive_schemas::{Chunk, Layout, RowSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use self::fields::{EVENT_TIME, Role, TimeForm};
use self::format::{Format, Literal};
use super::columns::{Columns, Declared, Slot};
use super::scalars;
use super::text::CharsetErrors;
use super::texts::{self, Failure, Row};
use crate::decoder::{Decoded, Decoder, DecoderConfig, Demand};

/// Decodes the access logs of nginx, Apache and whatever writes like them: one request a line.
///
/// The fields have the names of ECS. Without a `schema` a line has those of its format:
///
/// | variable | field |
/// |---|---|
/// | `$remote_addr` | `source.ip: ip`; what is no address (a host name, `unix:`) goes to `source.address: string` |
/// | `$remote_user` | `user.name: string` |
/// | `$time_local`, `$time_iso8601`, `$msec` | `@timestamp: timestamp`; without any of them when the line was received |
/// | `$request` | `http.request.method: string`, `url.original: string`, `http.version: string` (`1.1`) |
/// | `$status` | `http.response.status_code: int64` |
/// | `$body_bytes_sent` | `http.response.body.bytes: int64` |
/// | `$http_referer` | `http.request.referrer: string` |
/// | `$http_user_agent` | `user_agent.original: string` |
/// | `$bytes_sent` | `http.response.bytes: int64` |
/// | `$request_length`, `$content_length` | `http.request.bytes: int64`, `http.request.body.bytes: int64` |
/// | `$request_id`, `$remote_port` | `http.request.id: string`, `source.port: int64` |
/// | `$request_method`, `$request_uri`, `$server_protocol` | as those of `$request`, which comes first |
/// | `$host`, `$uri`, `$args`, `$scheme` | `url.domain`, `url.path`, `url.query`, `url.scheme: string` |
/// | `$request_time`, `$gzip_ratio` | `nginx.request_time: float64` (seconds), `nginx.gzip_ratio: float64` |
/// | `$upstream_response_time`, `_connect_time`, `_header_time` | `nginx.upstream_response_time: float64` …: the sum over all upstreams that were asked |
/// | `$connection`, `$connection_requests` | `nginx.connection: int64`, `nginx.connection_requests: int64` |
/// | any other `$x` | `nginx.x: string` |
///
/// A declared schema picks from these, and may give the fields of variables that are taken as they are another type
/// (`string`, `int64`, `float64`, `ip`). It may also use the catalogue's flat names: `ip`, `method`, `url`, `status`,
/// `bytes`, `referrer`, `user_agent`, and `apache.identity` for Apache's `%l`.
///
/// `-` is null. Escapes are resolved: nginx's `\x22`, Apache's `\"`; where the bytes that they stand for are not UTF-8
/// the text keeps them. A request line that is none (`\x16\x03\x01`, answered with 400) is a row whose `url.original` is
/// the whole of it, without method and version.
///
/// A line that does not fit is a reject; its reason begins with one of these codes:
///
/// - `empty`: no bytes.
/// - `invalid_utf8`: not UTF-8, unless `charset_errors` says otherwise.
/// - `truncated`: the line ends before the text that the format has behind a field.
/// - `unexpected_start`, `trailing_text`: something stands before the first or behind the last field.
/// - `invalid_time`, `invalid_number`, `invalid_ip`: a field that the pipeline reads says something else.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `combined` (the default of nginx, and what Apache calls so), `common`, or the text of nginx's `log_format`:
    /// variables, such as `$remote_addr`, with other text between them.
    #[serde(default = "combined", deserialize_with = "read_format")]
    #[schemars(with = "String")]
    format: Format,
    /// What to do with a line that is not UTF-8: `reject` or `replace`.
    #[serde(default)]
    charset_errors: CharsetErrors,
}

fn combined() -> Format {
    Format::parse("combined").expect("a format that has a name compiles")
}

fn read_format<'de, D: Deserializer<'de>>(from: D) -> Result<Format, D::Error> {
    Format::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

impl Component for AccessLog {
    const NAME: &'static str = "access_log";
    const EXAMPLE: &'static str = concat!(
        "type: access_log\n",
        "format: '$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent ",
        "\"$http_referer\" \"$http_user_agent\" $request_time'"
    );
}

impl DecoderConfig for AccessLog {
    fn default_schema(&self) -> RowSchema {
        RowSchema::of_fields(fields::default_fields(&self.format))
    }

    fn build(self, demand: &Demand) -> Result<Box<dyn Decoder>, ConfigError> {
        let (mut columns, declared) = Columns::declare(&demand.schema, Self::NAME)?;
        let mut targets: Vec<Vec<Target>> = self.format.fields.iter().map(|_| Vec::new()).collect();
        for field in &declared {
            self.aim(field, &demand.schema.event_time, &mut columns, &mut targets)?;
        }
        let steps = self.format.fields.into_iter().zip(targets);
        let steps =
            steps.map(|(field, targets)| Step { until: field.until, variable: field.variable, targets });
        Ok(Box::new(AccessLogDecoder {
            schema: demand.schema.arrow(),
            columns,
            charset_errors: self.charset_errors,
            line: Line { head: self.format.head, steps: steps.collect() },
        }))
    }
}

impl AccessLog {
    /// Finds the variable that fills a declared field.
    fn aim(
        &self,
        field: &Declared,
        event_time: &str,
        columns: &mut Columns,
        targets: &mut [Vec<Target>],
    ) -> Result<(), ConfigError> {
        let is_time = field.name() == event_time;
        let name = if is_time { EVENT_TIME.to_owned() } else { field.name() };
        let Some((variable, role)) = fields::maker(&name, &self.format) else {
            if let (true, Slot::Time(time)) = (is_time, field.slot) {
                columns.fill_with_received(time);
                return Ok(());
            }
            let names = fields::all_names(&self.format);
            return Err(field.unknown(Self::NAME, &names.iter().map(String::as_str).collect::<Vec<_>>()));
        };
        let target = Target::of(role, field.slot).map_err(|expected| {
            let because = format!("`${variable}` becomes {expected}, not {}", field.slot.type_name());
            field.mismatch(Self::NAME, &because)
        })?;
        let idx = self.format.fields.iter().position(|field| field.variable == variable);
        let of_variable = &mut targets[idx.expect("`maker` names variables of the format")];
        match (&target, of_variable.iter_mut().find(|known| matches!(known, Target::Request(_)))) {
            // A request line is taken apart once for all that it holds.
            (Target::Request(more), Some(Target::Request(request))) => request.merge(more),
            _ => of_variable.push(target),
        }
        Ok(())
    }
}

/// What to make of a field's text, and the column for it.
#[derive(Debug)]
enum Target {
    Address(usize),
    Float(usize),
    Integer(usize),
    /// Null if it is no address.
    Ip(usize),
    NotIp(usize),
    Protocol(usize),
    Request(Request),
    Text(usize),
    Time(TimeForm, usize),
    Total(usize),
}

/// The columns for a request line.
#[derive(Debug, Default)]
struct Request {
    method: Vec<usize>,
    url: Vec<usize>,
    version: Vec<usize>,
}

impl Request {
    fn merge(&mut self, other: &Self) {
        self.method.extend(&other.method);
        self.url.extend(&other.url);
        self.version.extend(&other.version);
    }
}

impl Target {
    /// The target of a role and a column; the type that the column should have had if it cannot be.
    fn of(role: Role, slot: Slot) -> Result<Self, &'static str> {
        Ok(match (role, slot) {
            (Role::Ip, Slot::Ip(column) | Slot::Text(column)) => Self::Ip(column),
            (Role::Ip, _) => return Err("ip"),
            (Role::Method, Slot::Text(column)) => {
                Self::Request(Request { method: vec![column], ..Request::default() })
            }
            (Role::NotIp, Slot::Text(column)) => Self::NotIp(column),
            (Role::Protocol, Slot::Text(column)) => Self::Protocol(column),
            (Role::Url, Slot::Text(column)) => {
                Self::Request(Request { url: vec![column], ..Request::default() })
            }
            (Role::Version, Slot::Text(column)) => {
                Self::Request(Request { version: vec![column], ..Request::default() })
            }
            (Role::Method | Role::NotIp | Role::Protocol | Role::Url | Role::Version, _) => {
                return Err("string");
            }
            (Role::Time(form), Slot::Time(column)) => Self::Time(form, column),
            (Role::Time(_), Slot::Text(column)) => Self::Text(column),
            (Role::Time(_), _) => return Err("timestamp"),
            (Role::Total, Slot::Float(column)) => Self::Total(column),
            (_, Slot::Float(column)) => Self::Float(column),
            (_, Slot::Integer(column)) => Self::Integer(column),
            (_, Slot::Ip(column)) => Self::Address(column),
            (_, Slot::Text(column)) => Self::Text(column),
            (_, Slot::Time(_)) => return Err("string, int64, float64 or ip"),
        })
    }
}

struct AccessLogDecoder {
    schema: SchemaRef,
    columns: Columns,
    charset_errors: CharsetErrors,
    line: Line,
}

/// The format with its targets.
struct Line {
    head: Literal,
    steps: Vec<Step>,
}

/// A field of the line.
struct Step {
    until: Literal,
    /// For reasons of rejects.
    variable: String,
    targets: Vec<Target>,
}

impl Line {
    #[inline]
    fn parse(&self, line: &str, row: &mut Row<'_>) -> Result<(), Failure> {
        let bytes = line.as_bytes();
        if !self.head.is_at(bytes, 0) {
            return Err(self.wrong_start(line));
        }
        let escapes = memchr::memchr(b'\\', bytes).is_some();
        let mut pos = self.head.len();
        for step in &self.steps {
            let Some(end) = step.until.find(bytes, pos, escapes) else {
                return Err(step.truncated(pos));
            };
            let text = &line[pos..end];
            for target in &step.targets {
                target.put(text, escapes, row).map_err(|code| step.failure(code, pos, text))?;
            }
            pos = end + step.until.len();
        }
        if pos < bytes.len() {
            return Err(Failure::new("trailing_text", format!("the last field ends at byte {pos}")));
        }
        Ok(())
    }

    #[cold]
    fn wrong_start(&self, line: &str) -> Failure {
        if line.is_empty() {
            return Failure::new("empty", "no bytes");
        }
        Failure::new("unexpected_start", format!("the line does not begin with `{}`", self.head.as_str()))
    }
}

impl Step {
    #[cold]
    fn truncated(&self, pos: usize) -> Failure {
        let what =
            format!("no `{}` behind `${}`, which begins at byte {pos}", self.until.as_str(), self.variable);
        Failure::new("truncated", what)
    }

    #[cold]
    fn failure(&self, code: &str, pos: usize, text: &str) -> Failure {
        let text: String = text.chars().take(80).collect();
        Failure::new(code, format!("`${}` at byte {pos} is `{text}`", self.variable))
    }
}

impl Target {
    /// Puts what it makes of `text` into its columns; the code of the reject if it cannot.
    #[inline]
    fn put(&self, text: &str, escapes: bool, row: &mut Row<'_>) -> Result<(), &'static str> {
        if text == "-" {
            return Ok(());
        }
        match self {
            Self::Address(column) => {
                if !scalars::is_ip(text) {
                    return Err("invalid_ip");
                }
                row.text(*column, text);
            }
            Self::Float(column) => {
                row.columns.floats[*column].push(scalars::float(text).ok_or("invalid_number")?);
            }
            Self::Integer(column) => {
                row.columns.integers[*column].push(scalars::integer(text).ok_or("invalid_number")?);
            }
            Self::Ip(column) => {
                if scalars::is_ip(text) {
                    row.text(*column, text);
                }
            }
            Self::NotIp(column) => {
                if !scalars::is_ip(text) {
                    put_text(*column, text, escapes, row);
                }
            }
            Self::Protocol(column) => row.text(*column, text.strip_prefix("HTTP/").unwrap_or(text)),
            Self::Request(request) => request.put(text, escapes, row),
            Self::Text(column) => put_text(*column, text, escapes, row),
            Self::Time(form, column) => {
                let time = match form {
                    TimeForm::Iso8601 => values::time_iso8601(text),
                    TimeForm::Local => values::time_local(text),
                    TimeForm::Seconds => values::time_seconds(text),
                };
                row.columns.integers[*column].push(time.ok_or("invalid_time")?);
            }
            Self::Total(column) => {
                if let Some(total) = values::total(text).map_err(|()| "invalid_number")? {
                    row.columns.floats[*column].push(total);
                }
            }
        }
        Ok(())
    }
}

impl Request {
    #[inline]
    fn put(&self, text: &str, escapes: bool, row: &mut Row<'_>) {
        let Some((method, url, version)) = values::request(text) else {
            if !text.is_empty() {
                self.url.iter().for_each(|column| put_text(*column, text, escapes, row));
            }
            return;
        };
        self.method.iter().for_each(|column| row.text(*column, method));
        self.url.iter().for_each(|column| put_text(*column, url, escapes, row));
        self.version.iter().for_each(|column| row.text(*column, version));
    }
}

#[inline]
fn put_text(column: usize, text: &str, escapes: bool, row: &mut Row<'_>) {
    if escapes && text.contains('\\') {
        row.text(column, &values::unescaped(text));
    } else {
        row.text(column, text);
    }
}

impl Decoder for AccessLogDecoder {
    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    fn layout(&self) -> Layout {
        Layout::Columns
    }

    fn decode(&mut self, chunk: &Chunk) -> Decoded {
        let line = &self.line;
        texts::decode(chunk, &self.schema, &mut self.columns, self.charset_errors, |text, row| {
            line.parse(text, row)
        })
    }
}
