//! One column while it is filled: from JSON values of one declared type to an Arrow array.

use std::mem;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Decimal128Array, Float64Array, Int64Array, ListArray,
    StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};
use logdrive_schemas::FieldType;
use simd_json::{Node, StaticNode};

use super::Failure;
use super::level::{Level, Row, Value};
use super::scalar::{self, Minute, NumberError};
use crate::decoders::scalars;
use crate::decoders::views::{ArenaBuffers, View};

/// One column while it is filled.
pub(super) struct Column {
    pub(super) values: Values,
    /// Which values are null, ascending: most columns have none, so that a value that is not costs nothing here.
    nulls: Vec<u32>,
}

/// The values of a column by their type, with any value where the column is null.
pub(super) enum Values {
    Boolean(Vec<bool>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    Float64(Vec<f64>),
    GeoPoint { lat: Vec<f64>, lon: Vec<f64> },
    Int64(Vec<i64>),
    Ip(Vec<View>),
    List { offsets: Vec<i32>, items: Box<Column> },
    Object(Level),
    String(Vec<View>),
    Timestamp { values: Vec<i64>, minute: Minute },
}

impl Column {
    pub(super) fn new(field_type: &FieldType) -> Self {
        let values = match field_type {
            FieldType::Boolean => Values::Boolean(Vec::new()),
            FieldType::Decimal(precision, scale) => {
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale }
            }
            FieldType::Float64 => Values::Float64(Vec::new()),
            FieldType::GeoPoint => Values::GeoPoint { lat: Vec::new(), lon: Vec::new() },
            FieldType::Int64 => Values::Int64(Vec::new()),
            FieldType::Ip => Values::Ip(Vec::new()),
            FieldType::List(inner) => Values::List { offsets: vec![0], items: Box::new(Self::new(inner)) },
            FieldType::Object(fields) => Values::Object(Level::new(fields)),
            FieldType::String => Values::String(Vec::new()),
            FieldType::Timestamp => Values::Timestamp { values: Vec::new(), minute: Minute::default() },
        };
        Self { values, nulls: Vec::new() }
    }

    /// The number of values and nulls.
    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Boolean(values) => values.len(),
            Values::Decimal { values, .. } => values.len(),
            Values::Float64(values) => values.len(),
            Values::GeoPoint { lon, .. } => lon.len(),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.len(),
            Values::Ip(values) | Values::String(values) => values.len(),
            Values::List { offsets, .. } => offsets.len() - 1,
            Values::Object(level) => level.len(),
        }
    }

    /// Makes room for `n_rows` more.
    pub(super) fn reserve(&mut self, n_rows: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.reserve(n_rows),
            Values::Decimal { values, .. } => values.reserve(n_rows),
            Values::Float64(values) => values.reserve(n_rows),
            Values::GeoPoint { lat, lon } => {
                lat.reserve(n_rows);
                lon.reserve(n_rows);
            }
            Values::Int64(values) | Values::Timestamp { values, .. } => values.reserve(n_rows),
            Values::Ip(values) | Values::String(values) => values.reserve(n_rows),
            Values::List { offsets, .. } => offsets.reserve(n_rows),
            Values::Object(level) => level.reserve(n_rows),
        }
    }

    /// Appends a value, null if there is none. After a failure the column may hold part of it: truncate it.
    pub(super) fn append(&mut self, row: &mut Row<'_>, value: Option<Value>) -> Result<(), Failure> {
        let Some(value) = value else {
            self.append_null();
            return Ok(());
        };
        let node = row.node(value);
        if matches!(node, Node::Static(StaticNode::Null)) {
            self.append_null();
            return Ok(());
        }
        match &mut self.values {
            Values::Boolean(values) => match node {
                Node::Static(StaticNode::Bool(value)) => values.push(value),
                _ => return Err(wrong_type(node, "a boolean")),
            },
            Values::Decimal { values, precision, scale } => {
                values.push(decimal(row, value, *precision, *scale)?);
            }
            Values::Float64(values) => values.push(float(row, value, "a number")?),
            Values::GeoPoint { lat, lon } => {
                let point = geo_point(row, value)?;
                lat.push(point.0);
                lon.push(point.1);
            }
            Values::Int64(values) => values.push(integer(row, value, "an integer")?),
            Values::Ip(values) => match node {
                Node::String(text) if scalars::is_ip(text) => {
                    let offset = row.offset(text);
                    values.push(row.arena.view(text, offset));
                }
                _ => return Err(wrong_type(node, "an IP address")),
            },
            Values::List { offsets, items } => {
                if let Node::Array { .. } = node {
                    for element in row.elements(value) {
                        items.append(row, Some(element))?;
                    }
                } else {
                    items.append(row, Some(value))?;
                }
                offsets.push(i32::try_from(items.len()).expect("fewer items than the chunk has bytes"));
            }
            Values::Object(level) => match node {
                Node::Object { len, .. } => level.append(row, value.node, len)?,
                _ => return Err(wrong_type(node, "an object")),
            },
            Values::String(values) => values.push(text(row, value)?),
            Values::Timestamp { values, .. } => values.push(timestamp(row, value)?),
        }
        Ok(())
    }

    /// Appends a null.
    ///
    /// # Panics
    /// If there are 2^32 values, more than a chunk has bytes.
    pub(super) fn append_null(&mut self) {
        self.nulls.push(u32::try_from(self.len()).expect("fewer values than the chunk has bytes"));
        match &mut self.values {
            Values::Boolean(values) => values.push(false),
            Values::Decimal { values, .. } => values.push(0),
            Values::Float64(values) => values.push(0.0),
            Values::GeoPoint { lat, lon } => {
                lat.push(0.0);
                lon.push(0.0);
            }
            Values::Int64(values) | Values::Timestamp { values, .. } => values.push(0),
            Values::Ip(values) | Values::String(values) => values.push(View::EMPTY),
            Values::List { offsets, items } => {
                offsets.push(i32::try_from(items.len()).expect("fewer items than the chunk has bytes"));
            }
            Values::Object(level) => level.append_null(),
        }
    }

    /// Removes everything behind the first `len` values.
    pub(super) fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.truncate(len),
            Values::Decimal { values, .. } => values.truncate(len),
            Values::Float64(values) => values.truncate(len),
            Values::GeoPoint { lat, lon } => {
                lat.truncate(len);
                lon.truncate(len);
            }
            Values::Int64(values) | Values::Timestamp { values, .. } => values.truncate(len),
            Values::Ip(values) | Values::String(values) => values.truncate(len),
            Values::List { offsets, items } => {
                offsets.truncate(len + 1);
                items.truncate(offsets.last().map_or(0, |end| *end as usize));
            }
            Values::Object(level) => level.truncate(len),
        }
        while self.nulls.pop_if(|null| *null as usize >= len).is_some() {}
    }

    /// Makes an array for `field` of all values and starts anew.
    pub(super) fn finish(&mut self, field: &Field, buffers: &ArenaBuffers) -> ArrayRef {
        let len = self.len();
        let nulls = null_buffer(&self.nulls, len);
        self.nulls.clear();
        match &mut self.values {
            Values::Boolean(values) => Arc::new(BooleanArray::new(mem::take(values).into(), nulls)),
            Values::Decimal { values, precision, scale } => Arc::new(
                Decimal128Array::new(mem::take(values).into(), nulls)
                    .with_precision_and_scale(*precision, *scale)
                    .expect("the schema has a valid precision and scale"),
            ),
            Values::Float64(values) => Arc::new(Float64Array::new(mem::take(values).into(), nulls)),
            Values::GeoPoint { lat, lon } => {
                let axis = |values: &mut Vec<f64>| -> ArrayRef {
                    Arc::new(Float64Array::new(mem::take(values).into(), nulls.clone()))
                };
                struct_array(field, vec![axis(lat), axis(lon)], len, nulls.clone())
            }
            Values::Int64(values) => Arc::new(Int64Array::new(mem::take(values).into(), nulls)),
            Values::Ip(values) | Values::String(values) => {
                Arc::new(buffers.string_view_array(mem::take(values), nulls))
            }
            Values::List { offsets, items } => {
                let DataType::List(item) = field.data_type() else {
                    unreachable!("a list column has a list field")
                };
                let offsets = OffsetBuffer::new(mem::replace(offsets, vec![0]).into());
                Arc::new(ListArray::new(Arc::clone(item), offsets, items.finish(item, buffers), nulls))
            }
            Values::Object(level) => {
                let DataType::Struct(fields) = field.data_type() else {
                    unreachable!("an object column has a struct field")
                };
                struct_array(field, level.finish(fields, buffers), len, nulls)
            }
            Values::Timestamp { values, .. } => {
                Arc::new(TimestampMicrosecondArray::new(mem::take(values).into(), nulls).with_timezone("UTC"))
            }
        }
    }
}

/// The bitmap of `len` values of which these are null; none if none is.
fn null_buffer(nulls: &[u32], len: usize) -> Option<NullBuffer> {
    if nulls.is_empty() {
        return None;
    }
    let mut bits = BooleanBufferBuilder::new(len);
    bits.append_n(len, true);
    for null in nulls {
        bits.set_bit(*null as usize, false);
    }
    Some(NullBuffer::new(bits.finish()))
}

fn struct_array(field: &Field, columns: Vec<ArrayRef>, len: usize, nulls: Option<NullBuffer>) -> ArrayRef {
    let DataType::Struct(fields) = field.data_type() else {
        unreachable!("a struct column has a struct field")
    };
    if columns.is_empty() {
        return Arc::new(StructArray::new_empty_fields(len, nulls));
    }
    Arc::new(StructArray::new(fields.clone(), columns, nulls))
}

#[cold]
fn wrong_type(node: Node<'_>, expected: &str) -> Failure {
    let found = match node {
        Node::Array { .. } => "an array",
        Node::Object { .. } => "an object",
        Node::Static(StaticNode::Bool(_)) => "a boolean",
        Node::Static(StaticNode::Null) => "null",
        Node::Static(_) => "a number",
        Node::String(_) => "a string",
    };
    // A string may be of the right type and still not say the right thing.
    match node {
        Node::String(_) => Failure::new("wrong_type", format!("is a string that is not {expected}")),
        _ => Failure::new("wrong_type", format!("is {found}, not {expected}")),
    }
}

#[cold]
fn number_failure(error: NumberError, node: Node<'_>, expected: &str) -> Failure {
    match error {
        NumberError::NotANumber => wrong_type(node, expected),
        NumberError::OutOfRange => {
            Failure::new("number_out_of_range", format!("does not fit {expected} exactly"))
        }
    }
}

fn text(row: &mut Row<'_>, value: Value) -> Result<View, Failure> {
    if let Node::String(text) = row.node(value) {
        let offset = row.offset(text);
        return Ok(row.arena.view(text, offset));
    }
    let (text, begin) = row.text(value);
    // The message is valid UTF-8, and the text of a value begins and ends between characters.
    let text =
        std::str::from_utf8(text).map_err(|_| Failure::new("invalid_utf8", "is not UTF-8"))?.to_owned();
    Ok(row.arena.view(&text, begin))
}

fn integer(row: &Row<'_>, value: Value, expected: &str) -> Result<i64, Failure> {
    let node = row.node(value);
    let Node::Static(number) = node else { return Err(wrong_type(node, expected)) };
    match number {
        StaticNode::I64(number) if !row.numbers_lost => return Ok(number),
        StaticNode::U64(number) if !row.numbers_lost => {
            if let Ok(number) = i64::try_from(number) {
                return Ok(number);
            }
        }
        StaticNode::Bool(_) | StaticNode::Null => return Err(wrong_type(node, expected)),
        _ => {}
    }
    scalar::integer(row.text(value).0).map_err(|error| number_failure(error, node, "a 64-bit integer"))
}

fn float(row: &Row<'_>, value: Value, expected: &str) -> Result<f64, Failure> {
    let node = row.node(value);
    let Node::Static(number) = node else { return Err(wrong_type(node, expected)) };
    match number {
        StaticNode::F64(number) if !row.numbers_lost => Ok(number),
        // The tape does not keep the sign of `-0`.
        StaticNode::I64(number) if !row.numbers_lost && number != 0 => Ok(number as f64),
        StaticNode::U64(number) if !row.numbers_lost && number != 0 => Ok(number as f64),
        StaticNode::Bool(_) | StaticNode::Null => Err(wrong_type(node, expected)),
        _ => scalar::float(row.text(value).0).map_err(|error| match error {
            NumberError::OutOfRange => Failure::new("number_out_of_range", "is too large for a 64-bit float"),
            NumberError::NotANumber => wrong_type(node, expected),
        }),
    }
}

fn decimal(row: &Row<'_>, value: Value, precision: u8, scale: i8) -> Result<i128, Failure> {
    let node = row.node(value);
    let text = match node {
        Node::String(text) => text.as_bytes(),
        Node::Static(StaticNode::F64(_) | StaticNode::I64(_) | StaticNode::U64(_)) => row.text(value).0,
        _ => return Err(wrong_type(node, "a decimal number")),
    };
    scalar::decimal(text, precision, scale).map_err(|error| match error {
        NumberError::NotANumber => wrong_type(node, "a decimal number"),
        NumberError::OutOfRange => number_failure(error, node, &format!("decimal({precision},{scale})")),
    })
}

fn timestamp(row: &Row<'_>, value: Value) -> Result<i64, Failure> {
    let node = row.node(value);
    if let Node::String(text) = node {
        return scalar::timestamp(text).ok_or_else(|| wrong_type(node, "a point in time"));
    }
    let millis = integer(row, value, "a point in time")?;
    millis
        .checked_mul(1000)
        .ok_or_else(|| Failure::new("number_out_of_range", "is too large for milliseconds since 1970"))
}

/// Latitude and longitude in degrees.
fn geo_point(row: &Row<'_>, value: Value) -> Result<(f64, f64), Failure> {
    const EXPECTED: &str = "a geo point";
    let node = row.node(value);
    let (lat, lon) = match node {
        Node::String(text) => {
            let axis = |text: &str| scalar::float(text.trim_ascii().as_bytes()).ok();
            text.split_once(',')
                .and_then(|(lat, lon)| Some((axis(lat)?, axis(lon)?)))
                .ok_or_else(|| wrong_type(node, EXPECTED))?
        }
        Node::Array { len: 2 | 3, .. } => {
            let elements = row.elements(value);
            (float(row, elements[1], EXPECTED)?, float(row, elements[0], EXPECTED)?)
        }
        Node::Object { len, .. } => {
            let (mut lat, mut lon) = (None, None);
            for (key, member) in row.members(value.node, len) {
                let axis = match key {
                    "lat" => &mut lat,
                    "lon" => &mut lon,
                    _ => continue,
                };
                if axis.replace(float(row, member, EXPECTED)?).is_some() {
                    return Err(Failure::new("duplicate_key", "is there twice").within(key));
                }
            }
            lat.zip(lon).ok_or_else(|| wrong_type(node, EXPECTED))?
        }
        _ => return Err(wrong_type(node, EXPECTED)),
    };
    if lat.abs() <= 90.0 && lon.abs() <= 180.0 {
        return Ok((lat, lon));
    }
    Err(Failure::new("number_out_of_range", "is no place on Earth"))
}
