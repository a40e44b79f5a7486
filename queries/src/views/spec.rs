//! What a view computes, ready to run: stages over batches, and at most one aggregation between them.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array,
};
use arrow::compute::{filter, filter_record_batch, prep_null_mask_filter, take};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type, SchemaRef};
use datafusion::common::Result;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::PhysicalExpr;
use logdrive_operators::rows;
use logdrive_schemas::Rejects;

use super::windows::Windowing;
use crate::compiler::readable;

/// A view, compiled.
#[derive(Debug)]
pub(super) struct Spec {
    /// The input's columns that are read; the stages' columns are numbered in this order.
    pub(super) reads: Vec<String>,
    /// What happens to a row before it is aggregated.
    pub(super) before: Vec<Stage>,
    /// The aggregation, if there is one.
    pub(super) aggregation: Option<Aggregation>,
    /// What happens to a group's row.
    pub(super) after: Vec<Stage>,
    /// The result's columns.
    pub(super) schema: SchemaRef,
    /// The query's plan, for a reader.
    pub(super) plan: String,
}

/// A stateless part of a query.
#[derive(Debug)]
pub(super) enum Stage {
    /// Only rows for which it is true stay.
    Filter(Arc<dyn PhysicalExpr>),
    /// Other columns.
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
}

/// Rows that come out of stages, and which rows of the input they were.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) rows: RecordBatch,
    /// Ascending.
    pub(super) indices: UInt32Array,
}

/// Does `work` for all rows but those that make it fail; see [`rows::isolate`].
pub(super) fn isolate<T>(
    n_rows: usize,
    mut work: impl FnMut(usize, usize) -> Result<T>,
) -> (Vec<(usize, T)>, Rejects) {
    rows::isolate(n_rows, |start, len| work(start, len).map_err(|error| readable(&error)))
}

/// Runs stages on rows.
pub(super) fn run(stages: &[Stage], rows: &RecordBatch) -> Result<Staged> {
    let n_rows = u32::try_from(rows.num_rows()).unwrap_or(u32::MAX);
    let mut staged = Staged { rows: rows.clone(), indices: (0..n_rows).collect() };
    for stage in stages {
        match stage {
            Stage::Filter(condition) => {
                let mask = condition.evaluate(&staged.rows)?.into_array(staged.rows.num_rows())?;
                let mask = mask.as_boolean();
                if mask.null_count() == 0 && mask.true_count() == mask.len() {
                    continue;
                }
                let indices = filter(&staged.indices, mask)?;
                let rows = filter_record_batch(&staged.rows, mask)?;
                staged = Staged { rows, indices: indices.as_primitive().clone() };
            }
            Stage::Project(expressions, schema) => {
                let n_rows = staged.rows.num_rows();
                let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
                let columns = evaluate(expressions, &staged.rows)?;
                staged.rows = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?;
            }
        }
    }
    Ok(staged)
}

/// Some rows, also of those without columns, which are only counted.
pub(super) fn take_rows(rows: &RecordBatch, indices: &UInt32Array) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(indices.len()));
    let columns = rows.columns().iter().map(|column| take(column, indices, None));
    let columns = columns.collect::<Result<_, _>>()?;
    Ok(RecordBatch::try_new_with_options(rows.schema(), columns, &options)?)
}

/// The values of expressions.
pub(super) fn evaluate(expressions: &[Arc<dyn PhysicalExpr>], rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
    expressions.iter().map(|e| e.evaluate(rows)?.into_array(rows.num_rows())).collect()
}

/// The values of what rows are grouped by: 0 and -0 are one, and so are all that are not a number.
pub(super) fn evaluate_keys(keys: &[Arc<dyn PhysicalExpr>], rows: &RecordBatch) -> Result<Vec<ArrayRef>> {
    fn one<T: ArrowPrimitiveType>(column: &ArrayRef) -> ArrayRef {
        let one = |value: T::Native| match value.partial_cmp(&T::Native::ZERO) {
            Some(Ordering::Equal) => T::Native::ZERO,
            Some(_) => value,
            None => T::Native::MAX_TOTAL_ORDER,
        };
        Arc::new(column.as_primitive::<T>().unary::<_, T>(one))
    }
    let keys = evaluate(keys, rows)?.into_iter().map(|column| match column.data_type() {
        DataType::Float16 => one::<Float16Type>(&column),
        DataType::Float32 => one::<Float32Type>(&column),
        DataType::Float64 => one::<Float64Type>(&column),
        _ => column,
    });
    Ok(keys.collect())
}

/// GROUP BY, and what is computed for each group.
#[derive(Debug)]
pub(super) struct Aggregation {
    /// The windows, and which of the columns that are read has the time of a row.
    pub(super) windows: Option<(Windowing, usize)>,
    /// The other columns of the key, over the rows before.
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) aggregates: Vec<Aggregate>,
    /// What each column of the group's row is.
    pub(super) outputs: Vec<Output>,
    /// The group's row.
    pub(super) schema: SchemaRef,
    /// A part: pane, keys, states.
    pub(super) part_schema: SchemaRef,
}

/// One aggregate function.
#[derive(Debug)]
pub(super) struct Aggregate {
    pub(super) function: Arc<AggregateFunctionExpr>,
    /// Its arguments, and those of its ORDER BY.
    pub(super) arguments: Vec<Arc<dyn PhysicalExpr>>,
    /// What these are of.
    pub(super) types: Vec<DataType>,
    /// `FILTER (WHERE …)`.
    pub(super) filter: Option<Arc<dyn PhysicalExpr>>,
    /// How many columns its state has.
    pub(super) n_states: usize,
}

/// A column of a group's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The window, as a struct.
    Window,
    /// When the window starts.
    Start,
    /// When the window ends.
    End,
    /// A column of the key.
    Key(usize),
    /// The value of an aggregate.
    Aggregate(usize),
}

/// What an aggregation takes of a batch.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) keys: Vec<ArrayRef>,
    pub(super) arguments: Vec<Vec<ArrayRef>>,
    pub(super) filters: Vec<Option<BooleanArray>>,
}

/// Where a condition is true, not NULL.
pub(super) fn is_true(mask: &BooleanArray) -> BooleanArray {
    if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() }
}

impl Aggregation {
    /// Evaluates everything on rows that came out of the stages before.
    pub(super) fn arguments(&self, rows: &RecordBatch) -> Result<Arguments> {
        let keys = evaluate_keys(&self.keys, rows)?;
        let mut arguments = Vec::with_capacity(self.aggregates.len());
        let mut filters = Vec::with_capacity(self.aggregates.len());
        for aggregate in &self.aggregates {
            arguments.push(evaluate(&aggregate.arguments, rows)?);
            let mask = match &aggregate.filter {
                Some(condition) => {
                    let mask = condition.evaluate(rows)?.into_array(rows.num_rows())?;
                    Some(is_true(mask.as_boolean()))
                }
                None => None,
            };
            filters.push(mask);
        }
        Ok(Arguments { keys, arguments, filters })
    }

    /// How many columns of a part stand before the states: the pane and the key.
    pub(super) fn n_keys(&self) -> usize {
        1 + self.keys.len()
    }
}

impl Arguments {
    /// Only the rows where `mask` is true.
    pub(super) fn filter(&self, mask: &BooleanArray) -> Result<Self> {
        let of = |columns: &[ArrayRef]| -> Result<Vec<ArrayRef>> {
            columns.iter().map(|column| Ok(filter(column, mask)?)).collect()
        };
        let filters = self.filters.iter().map(|column| match column {
            Some(column) => Ok(Some(filter(column, mask)?.as_boolean().clone())),
            None => Ok(None),
        });
        Ok(Self {
            keys: of(&self.keys)?,
            arguments: self.arguments.iter().map(|columns| of(columns)).collect::<Result<_>>()?,
            filters: filters.collect::<Result<_>>()?,
        })
    }
}
