//! Accumulators for many groups at once: DataFusion's, but where these are not right for rows that come in any order and
//! in parts.

use std::cmp::Ordering;
use std::mem::size_of_val;
use std::sync::Arc;

use arrow::array::{ArrayRef, ArrowNativeTypeOp};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices, take};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{Accumulator, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

/// The accumulator of a function, for the rows of all groups.
///
/// # Errors
/// If the function has none for its arguments.
pub(super) fn of_groups(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>> {
    if let Some(extreme) = extreme(function) {
        return Ok(extreme);
    }
    // The one of `bit_xor` for groups does not know DISTINCT.
    let is_right = !(function.is_distinct() && function.fun().name() == "bit_xor");
    if function.groups_accumulator_supported() && is_right {
        return function.create_groups_accumulator();
    }
    let function = Arc::clone(function);
    let adapter = GroupsAccumulatorAdapter::new(move || of_one(&function));
    Ok(Box::new(adapter))
}

fn of_one(function: &AggregateFunctionExpr) -> Result<Box<dyn Accumulator>> {
    let inner = function.create_accumulator()?;
    if !function.order_sensitivity().hard_requires() {
        return Ok(inner);
    }
    let order = function.order_bys().iter().map(|order| order.options).collect();
    Ok(Box::new(Sorting { inner, order }))
}

/// `min` and `max` of floating-point numbers: that of DataFusion for groups takes whatever comes last once there is a NaN.
/// In the total order of IEEE 754, which DataFusion uses without GROUP BY, NaN is the greatest.
fn extreme(function: &AggregateFunctionExpr) -> Option<Box<dyn GroupsAccumulator>> {
    let is_better = match function.fun().name() {
        "min" => Ordering::Less,
        "max" => Ordering::Greater,
        _ => return None,
    };
    let field = function.field();
    let data_type = field.data_type();
    Some(match data_type {
        DataType::Float16 => best::<Float16Type>(data_type, is_better),
        DataType::Float32 => best::<Float32Type>(data_type, is_better),
        DataType::Float64 => best::<Float64Type>(data_type, is_better),
        _ => return None,
    })
}

fn best<T: ArrowPrimitiveType + Send>(
    data_type: &DataType,
    is_better: Ordering,
) -> Box<dyn GroupsAccumulator> {
    let worst = match is_better {
        Ordering::Less => T::Native::MAX_TOTAL_ORDER,
        _ => T::Native::MIN_TOTAL_ORDER,
    };
    let better = move |best: &mut T::Native, value: T::Native| {
        if value.compare(*best) == is_better {
            *best = value;
        }
    };
    Box::new(PrimitiveGroupsAccumulator::<T, _>::new(data_type, better).with_starting_value(worst))
}

/// An accumulator that must see its rows in the order that they have by the last columns.
#[derive(Debug)]
struct Sorting {
    inner: Box<dyn Accumulator>,
    order: Vec<SortOptions>,
}

impl Accumulator for Sorting {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let by = values[values.len() - self.order.len()..].iter().zip(&self.order);
        let by =
            by.map(|(column, options)| SortColumn { values: Arc::clone(column), options: Some(*options) });
        let indices = lexsort_to_indices(&by.collect::<Vec<_>>(), None)?;
        let sorted = values.iter().map(|column| take(column, &indices, None));
        self.inner.update_batch(&sorted.collect::<Result<Vec<_>, _>>()?)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.inner.evaluate()
    }

    fn size(&self) -> usize {
        self.inner.size() + size_of_val(self.order.as_slice())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }
}
