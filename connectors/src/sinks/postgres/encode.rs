//! Rows in the forms of COPY: binary where every column has a type whose binary form is known here, else text, which
//! PostgreSQL reads as it reads any literal.

use arrow::datatypes::{DataType, Field};
use logdrive_schemas::schema::TYPE_KEY;
use logdrive_schemas::{Batch, Reject};
use tokio_postgres::types::Type;

use super::binary::{self, Values};
use super::table::{Fit, Shape};
use super::text;
use crate::document::Documents;
use crate::sinks::http_rejects::Refused;
use crate::sinks::pending::Pending;

/// What a binary COPY begins with: its signature, no flags, no extension.
pub(super) const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub(super) const TAIL: &[u8] = &[0xff, 0xff];
/// Why a row cannot be written.
pub(super) type Wrong = String;

/// The binary form of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Bytea,
    Date,
    Float4,
    Float8,
    Inet,
    Int2,
    Int4,
    Int8,
    Json,
    Jsonb,
    Numeric,
    Text,
    Timestamp,
}

/// What a dictionary's values are of.
pub(super) fn plain(of: &DataType) -> &DataType {
    match of {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

fn is_text(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(of: &DataType) -> bool {
    matches!(
        of,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

impl Kind {
    /// The binary form of a field in a column of this type; `None` if there is none.
    pub(super) fn of(field: &Field, oid: u32) -> Option<Self> {
        let of = plain(field.data_type());
        let is_ip = field.metadata().get(TYPE_KEY).is_some_and(|of| of == "ip");
        // What is larger than a bigint goes as text, so that the server says so.
        let is_integer = of.is_integer() && *of != DataType::UInt64;
        let kind = match Type::from_oid(oid)? {
            Type::BOOL if *of == DataType::Boolean => Self::Bool,
            Type::INT2 if is_integer => Self::Int2,
            Type::INT4 if is_integer => Self::Int4,
            Type::INT8 if is_integer => Self::Int8,
            Type::FLOAT4 if of.is_floating() => Self::Float4,
            Type::FLOAT8 if of.is_floating() => Self::Float8,
            Type::NUMERIC if matches!(of, DataType::Decimal128(_, _)) || of.is_integer() => Self::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR if is_text(of) => Self::Text,
            Type::BYTEA if is_bytes(of) => Self::Bytea,
            Type::DATE if matches!(of, DataType::Date32 | DataType::Date64) => Self::Date,
            Type::TIMESTAMP | Type::TIMESTAMPTZ if matches!(of, DataType::Timestamp(_, _)) => Self::Timestamp,
            Type::INET if is_ip => Self::Inet,
            Type::JSON => Self::Json,
            Type::JSONB => Self::Jsonb,
            _ => return None,
        };
        Some(kind)
    }

    /// The binary form of JSON text.
    pub(super) fn of_json(oid: u32) -> Option<Self> {
        match Type::from_oid(oid)? {
            Type::JSON | Type::TEXT | Type::VARCHAR => Some(Self::Json),
            Type::JSONB => Some(Self::Jsonb),
            _ => None,
        }
    }
}

/// The text form of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextKind {
    /// A list, for an array.
    Array,
    Bytes,
    /// Objects and lists.
    Json,
    /// As it is shown.
    Plain,
}

impl TextKind {
    pub(super) fn of(field: &Field, is_array: bool) -> Self {
        match plain(field.data_type()) {
            of if is_bytes(of) => Self::Bytes,
            DataType::List(_) if is_array => Self::Array,
            of if of.is_nested() => Self::Json,
            _ => Self::Plain,
        }
    }
}

/// Rows of one shape, as they are copied.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) data: Vec<u8>,
    /// Which row of which batch ends where in `data`.
    pub(super) pending: Pending<usize>,
}

impl Rows {
    /// Adds all rows of a batch but those that cannot be written.
    pub(super) fn add(&mut self, batch: &Batch, shape: &Shape, refused: &mut Refused) {
        let schema = batch.schema();
        let array = |fit: &Fit| batch.rows().column(fit.idx);
        let documents = shape.document.map(|way| (Documents::new(batch), way));
        let mut rejects = Vec::new();
        self.pending.begin(batch);
        let mut add = |row: usize, written: Result<(), Wrong>, data: &mut Vec<u8>, start: usize| match written
        {
            Ok(()) => self.pending.push(row, data.len(), data.len() - start),
            Err(reason) => {
                data.truncate(start);
                rejects.push(Reject { idx: row, reason });
            }
        };
        if shape.is_binary {
            let values: Vec<(&Fit, Option<Values<'_>>)> = shape
                .columns
                .iter()
                .map(|fit| (fit, Values::new(schema.field(fit.idx), array(fit), fit.way.binary)))
                .collect();
            for row in 0..batch.num_rows() {
                let start = self.data.len();
                let written = binary::write(&values, documents.as_ref(), batch, row, &mut self.data);
                add(row, written, &mut self.data, start);
            }
        } else {
            for row in 0..batch.num_rows() {
                let start = self.data.len();
                let written = text::write(shape, documents.as_ref(), batch, row, &mut self.data);
                add(row, written, &mut self.data, start);
            }
        }
        if !rejects.is_empty() {
            refused.push((batch.clone(), rejects));
        }
    }
}
