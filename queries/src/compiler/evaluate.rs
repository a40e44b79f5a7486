//! A compiled expression at work.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::physical_plan::{ColumnarValue, PhysicalExpr};
use logdrive_operators::{Expression, ExpressionError};

use super::readable;

/// An expression over the columns that it reads, which it finds by name: batches may have others beside.
#[derive(Debug)]
pub(super) struct SqlExpression {
    sql: String,
    physical: Arc<dyn PhysicalExpr>,
    data_type: DataType,
    /// Sorted; the columns of `physical` are numbered in this order.
    columns: Vec<String>,
}

impl SqlExpression {
    pub(super) fn new(
        sql: &str,
        physical: Arc<dyn PhysicalExpr>,
        data_type: DataType,
        columns: Vec<String>,
    ) -> Self {
        Self { sql: sql.into(), physical, data_type, columns }
    }
}

impl Expression for SqlExpression {
    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let schema = rows.schema_ref();
        let indices: Vec<usize> = self
            .columns
            .iter()
            .map(|name| {
                schema.index_of(name).map_err(|_| {
                    ExpressionError(format!("the rows have no column `{name}`, which `{}` reads", self.sql))
                })
            })
            .collect::<Result<_, _>>()?;
        let read = rows.project(&indices).map_err(|error| ExpressionError(error.to_string()))?;
        let value = self.physical.evaluate(&read).map_err(|error| ExpressionError(readable(&error)))?;
        value.into_array(rows.num_rows()).map_err(|error| ExpressionError(readable(&error)))
    }

    fn data_type(&self) -> &DataType {
        &self.data_type
    }

    fn columns(&self) -> &[String] {
        &self.columns
    }
}

/// The value of an expression that reads no columns.
pub(super) fn constant(physical: &Arc<dyn PhysicalExpr>) -> Result<ScalarValue> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
    match physical.evaluate(&row)? {
        ColumnarValue::Scalar(value) => Ok(value),
        ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0),
    }
}
