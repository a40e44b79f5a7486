//! From Avro to JSON, by values rather than by Avro's own JSON encoding: a union is what it holds.

use std::collections::{HashMap, HashSet};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::date;
use jiff::{Timestamp, ToSpan as _};
use serde_json::{Map, Value as Json};

use crate::kafka::AVRO_NAME;

/// The message as JSON; `None` if it is not of the schema, or not all of it is.
pub(super) fn read(schema: &Schema, parts: &[Schema], mut body: &[u8]) -> Option<Json> {
    let builder = GenericDatumReader::builder(schema);
    let reader = match parts {
        [] => builder.build(),
        _ => builder.writer_schemata(parts.iter().chain([schema]).collect()).ok()?.build(),
    };
    let value = reader.ok()?.read_value(&mut body).ok().filter(|_| body.is_empty())?;
    json(&value, schema, &names(schema, parts))
}

/// Whether messages of the schema can be nested as deep as they are long: reading one would overflow the stack.
pub(super) fn is_recursive(schema: &Schema, parts: &[Schema]) -> bool {
    let names = names(schema, parts);
    names.keys().any(|name| reaches(names[name], name, &names, &mut HashSet::new()))
}

/// Whether a type has a part of the type `name`.
fn reaches<'a>(
    schema: &'a Schema,
    name: &str,
    names: &HashMap<String, &'a Schema>,
    seen: &mut HashSet<String>,
) -> bool {
    let mut part = |part: &'a Schema| match part {
        Schema::Ref { name: of } => {
            let of = of.fullname(None);
            of == name
                || seen.insert(of.clone()) && names.get(&of).is_some_and(|of| reaches(of, name, names, seen))
        }
        part => part.name().is_some_and(|of| of.fullname(None) == name) || reaches(part, name, names, seen),
    };
    match schema {
        Schema::Record(record) => record.fields.iter().any(|field| part(&field.schema)),
        Schema::Union(union) => union.variants().iter().any(part),
        Schema::Array(array) => part(&array.items),
        Schema::Map(map) => part(&map.types),
        _ => false,
    }
}

fn names<'a>(schema: &'a Schema, parts: &'a [Schema]) -> HashMap<String, &'a Schema> {
    let mut names = HashMap::new();
    parts.iter().chain([schema]).for_each(|schema| collect(schema, &mut names));
    names
}

/// Named schemas, to which others refer.
fn collect<'a>(schema: &'a Schema, names: &mut HashMap<String, &'a Schema>) {
    // One that refers to another has its name, too.
    if let Some(name) = schema.name().filter(|_| !matches!(schema, Schema::Ref { .. })) {
        names.insert(name.fullname(None), schema);
    }
    match schema {
        Schema::Record(record) => record.fields.iter().for_each(|field| collect(&field.schema, names)),
        Schema::Union(union) => union.variants().iter().for_each(|schema| collect(schema, names)),
        Schema::Array(array) => collect(&array.items, names),
        Schema::Map(map) => collect(&map.types, names),
        _ => {}
    }
}

fn json(value: &Value, schema: &Schema, names: &HashMap<String, &Schema>) -> Option<Json> {
    let schema = match schema {
        Schema::Ref { name } => names.get(&name.fullname(None))?,
        schema => schema,
    };
    let micros = |micros: i64| Timestamp::from_microsecond(micros).ok().map(|at| Json::from(at.to_string()));
    Some(match (value, schema) {
        (Value::Null, _) => Json::Null,
        (Value::Boolean(b), _) => (*b).into(),
        (Value::Int(n) | Value::TimeMillis(n), _) => (*n).into(),
        (Value::Long(n) | Value::TimeMicros(n), _) => (*n).into(),
        // What is no number in JSON is null.
        (Value::Float(n), _) => (*n).into(),
        (Value::Double(n), _) => (*n).into(),
        (Value::Bytes(bytes) | Value::Fixed(_, bytes), _) => STANDARD.encode(bytes).into(),
        (Value::String(text) | Value::Enum(_, text), _) => text.as_str().into(),
        (Value::Union(idx, value), Schema::Union(union)) => {
            json(value, union.variants().get(usize::try_from(*idx).ok()?)?, names)?
        }
        (Value::Array(items), Schema::Array(array)) => {
            items.iter().map(|item| json(item, &array.items, names)).collect::<Option<Vec<_>>>()?.into()
        }
        (Value::Map(entries), Schema::Map(map)) => {
            let entry =
                |(key, value): (&String, &Value)| Some((key.clone(), json(value, &map.types, names)?));
            Json::Object(entries.iter().map(entry).collect::<Option<Map<_, _>>>()?)
        }
        (Value::Record(fields), Schema::Record(record)) => {
            let field = |((name, value), field): (&(String, Value), &apache_avro::schema::RecordField)| {
                // Avro's names are narrow; our own sink says what a field is called.
                let called = field.custom_attributes.get(AVRO_NAME).and_then(Json::as_str);
                Some((called.unwrap_or(name).to_owned(), json(value, &field.schema, names)?))
            };
            Json::Object(fields.iter().zip(&record.fields).map(field).collect::<Option<Map<_, _>>>()?)
        }
        (Value::Date(days), _) => date(1970, 1, 1).checked_add(days.days()).ok()?.to_string().into(),
        (Value::Decimal(decimal), Schema::Decimal(schema)) => {
            let bytes: Vec<u8> = decimal.try_into().ok()?;
            decimal_text(&bytes, schema.scale)?.into()
        }
        (Value::TimestampMillis(n) | Value::LocalTimestampMillis(n), _) => micros(n.checked_mul(1000)?)?,
        (Value::TimestampMicros(n) | Value::LocalTimestampMicros(n), _) => micros(*n)?,
        (Value::TimestampNanos(n) | Value::LocalTimestampNanos(n), _) => micros(n.div_euclid(1000))?,
        (Value::Uuid(uuid), _) => uuid.to_string().into(),
        _ => return None,
    })
}

/// A number of up to 38 digits with its point, as text: as a JSON number it would lose digits on the way.
fn decimal_text(bytes: &[u8], scale: usize) -> Option<String> {
    let negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
    let mut wide = if negative { [0xff; 16] } else { [0; 16] };
    wide.get_mut(16_usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    let unscaled = i128::from_be_bytes(wide);
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    Some(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_within_itself_is_found() {
        let node = r#"{"type":"record","name":"node","fields":[{"name":"next","type":["null","node"]}]}"#;
        let twice = r#"{"type":"record","name":"pair","fields":[{"name":"a","type":{"type":"fixed","name":"f","size":2}},{"name":"b","type":"f"}]}"#;
        let schema = |text: &str| Schema::parse_str(text).unwrap();
        assert!(is_recursive(&schema(node), &[]));
        assert!(!is_recursive(&schema(twice), &[]));
        let read = read(&schema(twice), &[], &[1, 2, 3, 4]).unwrap();
        assert_eq!(read.to_string(), r#"{"a":"AQI=","b":"AwQ="}"#);
        assert!(
            super::read(&schema(twice), &[], &[1, 2, 3, 4, 5]).is_none(),
            "there is more than the schema says"
        );
    }

    #[test]
    fn decimals_keep_their_digits() {
        for (bytes, scale, text) in [
            (&[0x04, 0xd2][..], 2, "12.34"),
            (&[0xff], 2, "-0.01"),
            (&[0], 0, "0"),
            (&[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 3, "2361183241434822606.847"),
        ] {
            assert_eq!(decimal_text(bytes, scale).as_deref(), Some(text));
        }
        assert_eq!(decimal_text(&[1; 17], 2), None);
    }
}
