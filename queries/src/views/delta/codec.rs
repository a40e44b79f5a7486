//! Rows as bytes: what flows between the operators of differential dataflow. One type for all rows of all views, so that
//! nothing is compiled for a query.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::Result;

/// A row in Arrow's row format. The bytes of some columns followed by those of others are the bytes of both.
pub(super) type Row = Vec<u8>;

/// Something for each of many rows. Rows come from outside, so that nobody may foresee their hashes.
pub(super) type RowMap<V> = HashMap<Row, V, ahash::RandomState>;

/// About what a row that is kept costs beside its bytes.
pub(super) const ROW_BYTES: usize = 64;

/// Turns rows of one schema into bytes and back.
#[derive(Debug)]
pub(super) struct Codec {
    schema: SchemaRef,
    converter: RowConverter,
}

impl Codec {
    pub(super) fn new(schema: &SchemaRef) -> Result<Self> {
        Self::ordered(schema, &[])
    }

    /// Bytes that compare as the rows do by the first columns, with `options` of them, then by the others.
    pub(super) fn ordered(schema: &SchemaRef, options: &[SortOptions]) -> Result<Self> {
        let mut fields = sort_fields(schema);
        for (field, (options, column)) in fields.iter_mut().zip(options.iter().zip(schema.fields())) {
            *field = SortField::new_with_options(column.data_type().clone(), *options);
        }
        Ok(Self { schema: Arc::clone(schema), converter: RowConverter::new(fields)? })
    }

    /// Whether rows with such columns have a form as bytes.
    pub(super) fn supports(schema: &SchemaRef) -> bool {
        // A dictionary would come back as its values, and an empty one is more than the converter can take.
        let has_dictionary = |field: &FieldRef| has_dictionary(field.data_type());
        RowConverter::supports_fields(&sort_fields(schema)) && !schema.fields().iter().any(has_dictionary)
    }

    /// The bytes of each row.
    pub(super) fn encode(&self, columns: &[ArrayRef], n_rows: usize) -> Result<Vec<Row>> {
        if columns.is_empty() {
            return Ok(vec![Row::new(); n_rows]);
        }
        let rows = self.converter.convert_columns(columns)?;
        Ok(rows.iter().map(|row| row.as_ref().to_vec()).collect())
    }

    /// The rows of bytes that [`Self::encode`] made.
    pub(super) fn decode<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let columns = if self.schema.fields().is_empty() {
            Vec::new()
        } else {
            let parser = self.converter.parser();
            self.converter.convert_rows(rows.map(|row| parser.parse(row)))?
        };
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }
}

fn has_dictionary(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(..) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            has_dictionary(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| has_dictionary(field.data_type())),
        _ => false,
    }
}

fn sort_fields(schema: &Schema) -> Vec<SortField> {
    schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect()
}
