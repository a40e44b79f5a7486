//! Row schemas: which fields a message has, and of which type.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::component::{ConfigError, Node, NodeKind, nearest};

/// The metadata key under which an Arrow field remembers a Logdrive type that Arrow has not (`ip`, `geo_point`).
pub const TYPE_KEY: &str = "logdrive.type";

/// The type of a field, as YAML writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// `boolean`.
    Boolean,
    /// `decimal(precision, scale)`, at most 38 digits.
    Decimal(u8, i8),
    /// `float64`.
    Float64,
    /// `geo_point`: `{lat, lon}` in degrees.
    GeoPoint,
    /// `int64`.
    Int64,
    /// `ip`: an IPv4 or IPv6 address, kept as text.
    Ip,
    /// `list<T>`.
    List(Box<Self>),
    /// A nested map of fields.
    Object(Vec<(String, Self)>),
    /// `string`.
    String,
    /// `timestamp`: microseconds since the Unix epoch, UTC.
    Timestamp,
}

/// The names of the scalar types, for error messages.
pub const TYPE_NAMES: &[&str] =
    &["boolean", "decimal(p,s)", "float64", "geo_point", "int64", "ip", "list<T>", "string", "timestamp"];

impl FieldType {
    /// Reads a type name such as `list<decimal(10,2)>`; `None` if there is no such type.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(inner) = text.strip_prefix("list<").and_then(|t| t.strip_suffix('>')) {
            return Some(Self::List(Box::new(Self::parse(inner)?)));
        }
        if let Some(inner) = text.strip_prefix("decimal(").and_then(|t| t.strip_suffix(')')) {
            let (precision, scale) = inner.split_once(',')?;
            let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
            let valid = (1..=38).contains(&precision) && scale >= 0 && scale as u8 <= precision;
            return valid.then_some(Self::Decimal(precision, scale));
        }
        Some(match text {
            "boolean" => Self::Boolean,
            "float64" => Self::Float64,
            "geo_point" => Self::GeoPoint,
            "int64" => Self::Int64,
            "ip" => Self::Ip,
            "string" => Self::String,
            "timestamp" => Self::Timestamp,
            _ => return None,
        })
    }

    /// The Arrow type of a column of this type.
    #[must_use]
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Decimal(precision, scale) => DataType::Decimal128(*precision, *scale),
            Self::Float64 => DataType::Float64,
            Self::GeoPoint => DataType::Struct(Fields::from(vec![
                Field::new("lat", DataType::Float64, true),
                Field::new("lon", DataType::Float64, true),
            ])),
            Self::Int64 => DataType::Int64,
            Self::Ip | Self::String => DataType::Utf8View,
            Self::List(inner) => DataType::List(Arc::new(inner.field("item"))),
            Self::Object(fields) => DataType::Struct(fields.iter().map(|(name, t)| t.field(name)).collect()),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    /// A nullable Arrow field of this type, marked so that [`Self::of`] finds the type again.
    #[must_use]
    pub fn field(&self, name: &str) -> Field {
        let field = Field::new(name, self.arrow(), true);
        match self {
            Self::GeoPoint => field.with_metadata([(TYPE_KEY.into(), "geo_point".into())].into()),
            Self::Ip => field.with_metadata([(TYPE_KEY.into(), "ip".into())].into()),
            _ => field,
        }
    }

    /// The type of an Arrow field; `None` for Arrow types that no Logdrive type maps to.
    #[must_use]
    pub fn of(field: &Field) -> Option<Self> {
        match field.metadata().get(TYPE_KEY).map(String::as_str) {
            Some("geo_point") => return Some(Self::GeoPoint),
            Some("ip") => return Some(Self::Ip),
            _ => {}
        }
        Some(match field.data_type() {
            DataType::Boolean => Self::Boolean,
            DataType::Decimal128(precision, scale) => Self::Decimal(*precision, *scale),
            DataType::Float32 | DataType::Float64 => Self::Float64,
            t if t.is_integer() => Self::Int64,
            DataType::List(item) => Self::List(Box::new(Self::of(item)?)),
            DataType::Struct(fields) => Self::Object(
                fields.iter().map(|f| Some((f.name().clone(), Self::of(f)?))).collect::<Option<_>>()?,
            ),
            DataType::Timestamp(_, _) => Self::Timestamp,
            DataType::LargeUtf8 | DataType::Utf8 | DataType::Utf8View => Self::String,
            _ => return None,
        })
    }
}

/// The declared fields of a source's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSchema {
    /// Top-level fields in declaration order, names unique.
    pub fields: Vec<(String, FieldType)>,
    /// The field that says when an event happened.
    pub event_time: String,
    /// How far behind the newest event a row may be and still count in windows.
    pub lateness: Duration,
}

impl RowSchema {
    /// The name of the event-time field unless a schema says otherwise.
    pub const EVENT_TIME: &'static str = "@timestamp";
    /// Allowed lateness unless a schema says otherwise.
    pub const LATENESS: Duration = Duration::from_secs(10);

    /// A schema with default event time and lateness.
    #[must_use]
    pub fn of_fields(fields: Vec<(String, FieldType)>) -> Self {
        Self { fields, event_time: Self::EVENT_TIME.into(), lateness: Self::LATENESS }
    }

    /// Reads `{ fields: {…}, event_time: …, lateness: … }`, reporting every error in it.
    pub fn parse(node: &Node, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let NodeKind::Map(entries) = &node.kind else {
            errors.push(ConfigError::wrong_type(node, "a catalogue name or a map with `fields`"));
            return None;
        };
        let mut schema = Self::of_fields(Vec::new());
        for (key, value) in entries {
            match key.name.as_str() {
                "fields" => schema.fields = parse_fields(value, errors),
                "event_time" => match value.as_str() {
                    Some(name) => schema.event_time = name.into(),
                    None => errors.push(ConfigError::wrong_type(value, "a field name")),
                },
                "lateness" => match value.as_str().and_then(|s| humantime::parse_duration(s).ok()) {
                    Some(lateness) => schema.lateness = lateness,
                    None => errors.push(ConfigError::wrong_type(value, "a duration such as `10s`")),
                },
                _ => errors.push(ConfigError::unknown_key(
                    key,
                    "schema",
                    &["fields", "event_time", "lateness"],
                )),
            }
        }
        Some(schema)
    }

    /// The Arrow schema of the declared fields.
    #[must_use]
    pub fn arrow(&self) -> SchemaRef {
        Arc::new(Schema::new(self.fields.iter().map(|(n, t)| t.field(n)).collect::<Vec<_>>()))
    }
}

/// Reads a map of names to types, in its order, reporting every error in it.
pub fn parse_fields(node: &Node, errors: &mut Vec<ConfigError>) -> Vec<(String, FieldType)> {
    let NodeKind::Map(entries) = &node.kind else {
        errors.push(ConfigError::wrong_type(node, "a map of field names to types"));
        return Vec::new();
    };
    let mut fields = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        if let NodeKind::Map(_) = value.kind {
            fields.push((key.name.clone(), FieldType::Object(parse_fields(value, errors))));
            continue;
        }
        match value.as_str() {
            Some(text) => match FieldType::parse(text) {
                Some(field_type) => fields.push((key.name.clone(), field_type)),
                None => errors.push(
                    ConfigError::new(
                        "config::unknown_type",
                        value.span,
                        format!("unknown type `{text}` of field `{}`", key.name),
                    )
                    .with_help(match nearest(text, TYPE_NAMES) {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => format!("types: {}, or a nested map", TYPE_NAMES.join(", ")),
                    }),
                ),
            },
            None => errors.push(ConfigError::wrong_type(value, "a type name or a nested map")),
        }
    }
    fields
}
