//! What a group of rows gives: aggregates, window functions, the first rows in an order. Always of all rows of the group
//! anew, by DataFusion's accumulators and evaluators, so that whatever these can do over a table is right over rows that
//! come and go.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::physical_expr::window::WindowExpr;

use super::super::spec::{Aggregate, is_true};
use super::codec::{Codec, Row};
use super::failed::good;
use super::plan::{Group, Order, Rank};

/// Stands for no row: a query without GROUP BY has a result even over nothing.
pub(super) const NOTHING: u8 = 0;
/// Before the bytes of a row that is one.
pub(super) const SOMETHING: u8 = 1;

/// How many rows one group may have, counting those that are alike.
const ROWS_MAX: usize = 1 << 24;

/// Computes the aggregates of groups.
pub(super) struct Aggregates {
    aggregates: Vec<Aggregate>,
    arguments: Codec,
    values: Codec,
}

impl Aggregates {
    pub(super) fn new(group: &Group) -> Result<Self> {
        let aggregates = group.aggregates.iter().map(|aggregate| Aggregate {
            function: Arc::clone(&aggregate.function),
            arguments: aggregate.arguments.clone(),
            filter: aggregate.filter.clone(),
            n_states: aggregate.n_states,
        });
        Ok(Self {
            aggregates: aggregates.collect(),
            arguments: Codec::new(&group.arguments)?,
            values: Codec::new(&group.values)?,
        })
    }

    /// The values of a group as bytes.
    pub(super) fn of(&self, rows: &[(&Row, isize)]) -> Result<Row> {
        let rows: Vec<(&[u8], isize)> = rows
            .iter()
            .filter(|(row, diff)| row.first() == Some(&SOMETHING) && *diff > 0)
            .map(|(row, diff)| (&row[1..], *diff))
            .collect();
        let batch = self.arguments.decode(rows.iter().map(|(row, _)| *row))?;
        let counts: Vec<isize> = rows.iter().map(|(_, diff)| *diff).collect();
        let mut column = 0;
        let mut filter_column: usize = self.aggregates.iter().map(|a| a.arguments.len()).sum();
        let mut values = Vec::with_capacity(self.aggregates.len());
        for aggregate in &self.aggregates {
            let arguments = batch.columns()[column..column + aggregate.arguments.len()].to_vec();
            column += aggregate.arguments.len();
            let mask = aggregate.filter.as_ref().map(|_| {
                filter_column += 1;
                is_true(batch.column(filter_column - 1).as_boolean())
            });
            values.push(value(aggregate, arguments, mask.as_ref(), &counts)?.to_array()?);
        }
        let mut rows = self.values.encode(&values, 1)?;
        Ok(rows.pop().unwrap_or_default())
    }
}

/// The value of an aggregate over rows of which each is there several times.
fn value(
    aggregate: &Aggregate,
    mut arguments: Vec<ArrayRef>,
    mask: Option<&BooleanArray>,
    counts: &[isize],
) -> Result<ScalarValue> {
    let function = &aggregate.function;
    let is_count = function.name().starts_with("count(") && function.fun().name() == "count";
    if is_count && !function.is_distinct() && arguments.len() == 1 {
        let counted = (0..counts.len())
            .filter(|row| arguments[0].is_valid(*row) && mask.is_none_or(|mask| mask.value(*row)));
        let n: isize = counted.map(|row| counts[row]).sum();
        return Ok(ScalarValue::Int64(Some(n as i64)));
    }
    let mut accumulator = function.create_accumulator()?;
    let is_same = function.is_distinct() || matches!(function.fun().name(), "min" | "max");
    let kept: Vec<u32> = repeated(counts, mask, is_same)?;
    if kept.len() != counts.len() || mask.is_some() {
        let kept = UInt32Array::from(kept);
        for argument in &mut arguments {
            *argument = arrow::compute::take(argument, &kept, None)?;
        }
    }
    accumulator.update_batch(&arguments)?;
    accumulator.evaluate()
}

/// Each row as often as it is there, or once.
fn repeated(counts: &[isize], mask: Option<&BooleanArray>, once: bool) -> Result<Vec<u32>> {
    let mut rows = Vec::with_capacity(counts.len());
    for (row, count) in counts.iter().enumerate() {
        if mask.is_some_and(|mask| !mask.value(row)) {
            continue;
        }
        let count = if once { 1 } else { usize::try_from(*count).unwrap_or(0) };
        if ROWS_MAX < rows.len().saturating_add(count) {
            return exec_err!("a group has more than {ROWS_MAX} rows");
        }
        rows.extend(std::iter::repeat_n(row as u32, count));
    }
    Ok(rows)
}

/// Puts rows into an order; where that leaves it open, by their bytes.
pub(super) struct Sorted {
    codec: Codec,
    order: Vec<Order>,
}

impl Sorted {
    pub(super) fn new(schema: &SchemaRef, order: &[Order]) -> Result<Self> {
        Ok(Self { codec: Codec::new(schema)?, order: order.to_vec() })
    }

    /// The rows from `skip` on, `fetch` of them, as a batch, and which of `rows` they are.
    fn rows(&self, rows: &[(&Row, isize)], skip: usize, fetch: usize) -> Result<(RecordBatch, Vec<u32>)> {
        let rows: Vec<(&[u8], isize)> =
            rows.iter().filter(|(_, diff)| *diff > 0).map(|(row, diff)| (row.as_slice(), *diff)).collect();
        let batch = self.codec.decode(rows.iter().map(|(row, _)| *row))?;
        let mut columns = Vec::with_capacity(self.order.len() + 1);
        for order in &self.order {
            let values = order.by.evaluate(&batch)?.into_array(batch.num_rows())?;
            columns.push(SortColumn { values, options: Some(order.options) });
        }
        let place: UInt32Array = (0..rows.len() as u32).collect();
        columns.push(SortColumn { values: Arc::new(place), options: None });
        let until = skip.saturating_add(fetch);
        let sorted = lexsort_to_indices(&columns, Some(until).filter(|n| *n < rows.len()))?;
        let mut places = Vec::new();
        let mut at = 0;
        for place in sorted.values() {
            for _ in 0..rows[*place as usize].1 {
                if (skip..until).contains(&at) {
                    if ROWS_MAX <= places.len() {
                        return exec_err!("a partition has more than {ROWS_MAX} rows");
                    }
                    places.push(*place);
                }
                at += 1;
                if until <= at {
                    break;
                }
            }
        }
        Ok((take_record_batch(&batch, &UInt32Array::from(places.clone()))?, places))
    }

    /// The first rows.
    pub(super) fn first(
        &self,
        rows: &[(&Row, isize)],
        first: (usize, usize),
        out: &mut Vec<(Row, isize)>,
    ) -> Result<()> {
        let (_, places) = self.rows(rows, first.0, first.1)?;
        let rows: Vec<&Row> = rows.iter().filter(|(_, diff)| *diff > 0).map(|(row, _)| *row).collect();
        out.extend(places.into_iter().map(|place| (good(rows[place as usize]), 1)));
        Ok(())
    }
}

/// Computes window functions over partitions.
pub(super) struct Ranked {
    sorted: Sorted,
    functions: Vec<Arc<dyn WindowExpr>>,
    limit: usize,
    output: Codec,
}

impl Ranked {
    pub(super) fn new(rank: &Rank, schema: &SchemaRef) -> Result<Self> {
        Ok(Self {
            sorted: Sorted::new(&rank.input.schema, &rank.order)?,
            functions: rank.functions.clone(),
            limit: rank.limit.unwrap_or(usize::MAX),
            output: Codec::new(schema)?,
        })
    }

    /// The rows of a partition, with the values of the functions behind them.
    pub(super) fn of(&self, rows: &[(&Row, isize)], out: &mut Vec<(Row, isize)>) -> Result<()> {
        let (rows, _) = self.sorted.rows(rows, 0, self.limit)?;
        let mut columns = rows.columns().to_vec();
        for function in &self.functions {
            columns.push(function.evaluate(&rows)?);
        }
        let rows = self.output.encode(&columns, rows.num_rows())?;
        out.extend(rows.into_iter().map(|row| (good(&row), 1)));
        Ok(())
    }
}
