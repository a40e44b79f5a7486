//! Which field a variable becomes: the names of ECS, and what else can be asked for.

use logdrive_schemas::{FieldType, RowSchema};

use super::format::Format;
use crate::decoders::columns::add_field;

/// What a variable's text is made into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The text if it is an IP address.
    Ip,
    /// Of a request line: `GET`.
    Method,
    /// The text if it is no IP address.
    NotIp,
    /// `HTTP/1.1` as `1.1`.
    Protocol,
    /// A time, by its form.
    Time(TimeForm),
    /// The sum of several numbers, as nginx writes them when a request was passed on more than once.
    Total,
    /// Of a request line: what was asked for.
    Url,
    /// The text as the field's type has it.
    Value,
    /// Of a request line: `1.1`.
    Version,
}

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeForm {
    /// `2000-10-10T13:55:36-07:00`.
    Iso8601,
    /// `10/Oct/2000:13:55:36 -0700`.
    Local,
    /// Seconds since the Unix epoch, with milliseconds.
    Seconds,
}

/// One field that a variable becomes.
pub(super) struct Known {
    pub(super) variable: &'static str,
    pub(super) field: &'static str,
    pub(super) role: Role,
    field_type: Kind,
    /// Whether the field is there without a declared schema.
    by_default: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Float64,
    Int64,
    Ip,
    String,
    Timestamp,
}

impl Kind {
    fn field_type(self) -> FieldType {
        match self {
            Self::Float64 => FieldType::Float64,
            Self::Int64 => FieldType::Int64,
            Self::Ip => FieldType::Ip,
            Self::String => FieldType::String,
            Self::Timestamp => FieldType::Timestamp,
        }
    }
}

const fn known(variable: &'static str, field: &'static str, role: Role, field_type: Kind) -> Known {
    Known { variable, field, role, field_type, by_default: true }
}

/// A name of the event catalogue, for those who declare it.
const fn flat(variable: &'static str, field: &'static str, role: Role, field_type: Kind) -> Known {
    Known { variable, field, role, field_type, by_default: false }
}

/// The time, under whatever name the schema has for it.
pub(super) const EVENT_TIME: &str = RowSchema::EVENT_TIME;

/// Every variable that means something. Of several for one field the first in this list that the format has is taken.
/// Any other variable `$x` is the field `nginx.x`.
pub(super) const KNOWN: &[Known] = &[
    known("msec", EVENT_TIME, Role::Time(TimeForm::Seconds), Kind::Timestamp),
    known("time_iso8601", EVENT_TIME, Role::Time(TimeForm::Iso8601), Kind::Timestamp),
    known("time_local", EVENT_TIME, Role::Time(TimeForm::Local), Kind::Timestamp),
    known("remote_addr", "source.ip", Role::Ip, Kind::Ip),
    known("remote_addr", "source.address", Role::NotIp, Kind::String),
    known("remote_port", "source.port", Role::Value, Kind::Int64),
    flat("identity", "apache.identity", Role::Value, Kind::String),
    known("remote_user", "user.name", Role::Value, Kind::String),
    known("request", "http.request.method", Role::Method, Kind::String),
    known("request_method", "http.request.method", Role::Value, Kind::String),
    known("request", "url.original", Role::Url, Kind::String),
    known("request_uri", "url.original", Role::Value, Kind::String),
    known("uri", "url.path", Role::Value, Kind::String),
    known("document_uri", "url.path", Role::Value, Kind::String),
    known("args", "url.query", Role::Value, Kind::String),
    known("query_string", "url.query", Role::Value, Kind::String),
    known("scheme", "url.scheme", Role::Value, Kind::String),
    known("host", "url.domain", Role::Value, Kind::String),
    known("http_host", "url.domain", Role::Value, Kind::String),
    known("request", "http.version", Role::Version, Kind::String),
    known("server_protocol", "http.version", Role::Protocol, Kind::String),
    known("request_id", "http.request.id", Role::Value, Kind::String),
    known("request_length", "http.request.bytes", Role::Value, Kind::Int64),
    known("content_length", "http.request.body.bytes", Role::Value, Kind::Int64),
    known("http_referer", "http.request.referrer", Role::Value, Kind::String),
    known("status", "http.response.status_code", Role::Value, Kind::Int64),
    known("body_bytes_sent", "http.response.body.bytes", Role::Value, Kind::Int64),
    known("bytes_sent", "http.response.bytes", Role::Value, Kind::Int64),
    known("http_user_agent", "user_agent.original", Role::Value, Kind::String),
    known("connection", "nginx.connection", Role::Value, Kind::Int64),
    known("connection_requests", "nginx.connection_requests", Role::Value, Kind::Int64),
    known("gzip_ratio", "nginx.gzip_ratio", Role::Value, Kind::Float64),
    known("request_time", "nginx.request_time", Role::Value, Kind::Float64),
    known("upstream_connect_time", "nginx.upstream_connect_time", Role::Total, Kind::Float64),
    known("upstream_header_time", "nginx.upstream_header_time", Role::Total, Kind::Float64),
    known("upstream_response_time", "nginx.upstream_response_time", Role::Total, Kind::Float64),
    flat("remote_addr", "ip", Role::Ip, Kind::Ip),
    flat("request", "method", Role::Method, Kind::String),
    flat("request_method", "method", Role::Value, Kind::String),
    flat("request", "url", Role::Url, Kind::String),
    flat("request_uri", "url", Role::Value, Kind::String),
    flat("status", "status", Role::Value, Kind::Int64),
    flat("body_bytes_sent", "bytes", Role::Value, Kind::Int64),
    flat("http_referer", "referrer", Role::Value, Kind::String),
    flat("http_user_agent", "user_agent", Role::Value, Kind::String),
];

/// Before the name of a variable that means nothing to us.
const OTHER: &str = "nginx.";

/// What makes the field called `name` from a line of `format`: the variable and its role.
pub(super) fn maker<'a>(name: &str, format: &'a Format) -> Option<(&'a str, Role)> {
    let known = KNOWN.iter().filter(|known| known.field == name).find_map(|known| {
        let field = format.fields.iter().find(|field| field.variable == known.variable)?;
        Some((field.variable.as_str(), known.role))
    });
    known.or_else(|| {
        let variable = name.strip_prefix(OTHER)?;
        let field = format.fields.iter().find(|field| field.variable == variable)?;
        Some((field.variable.as_str(), Role::Value))
    })
}

/// The fields that lines of `format` have, in the order of the variables, the time first.
pub(super) fn default_fields(format: &Format) -> Vec<(String, FieldType)> {
    let mut fields = vec![(EVENT_TIME.to_owned(), FieldType::Timestamp)];
    for (name, field_type) in names(format, |known| known.by_default) {
        add_field(&mut fields, &name, field_type);
    }
    fields
}

/// The names of all fields that `format` can fill.
pub(super) fn all_names(format: &Format) -> Vec<String> {
    names(format, |_| true).into_iter().map(|(name, _)| name).collect()
}

fn names(format: &Format, want: impl Fn(&Known) -> bool) -> Vec<(String, FieldType)> {
    let mut names = Vec::new();
    for field in &format.fields {
        let of_variable = || KNOWN.iter().filter(|known| known.variable == field.variable);
        if of_variable().next().is_none() {
            names.push((format!("{OTHER}{}", field.variable), FieldType::String));
        }
        names.extend(
            of_variable().filter(|known| want(known)).map(|k| (k.field.into(), k.field_type.field_type())),
        );
    }
    names
}
