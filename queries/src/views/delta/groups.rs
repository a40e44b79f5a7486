//! What aggregates give for a group of rows that come and go. Whatever DataFusion's functions can do over a table is right
//! here; what a change costs depends on the function:
//!
//! - counts, sums and what follows from them ([`moments`](super::moments)): the change; no row is kept,
//! - the least, the greatest, the first or last in an order: the logarithm of the rows that are kept,
//! - of DISTINCT values: the logarithm, and where a value comes or goes as without DISTINCT,
//! - all others: the group, anew.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};

use super::super::spec::is_true;
use super::bag::Bag;
use super::codec::{Codec, Row};
use super::fold::{Fold, Kept};
use super::moments::{Kind, Moments, is_null, readable};
use super::plan::{Call, Group};

/// Stands for no row: a query without GROUP BY has a result even over nothing.
pub(super) const NOTHING: u8 = 0;
/// Before the bytes of a row that is one.
pub(super) const SOMETHING: u8 = 1;

/// How many rows one group may have, counting those that are alike, where all of them are looked at.
const ROWS_MAX: usize = 1 << 24;

/// The aggregates, for a reader, and what they make it necessary to keep.
pub(super) fn explain(group: &Group) -> String {
    let plans = Plans::of(group);
    let names: Vec<&str> = group.calls.iter().map(|call| call.function.name()).collect();
    let what = if names.is_empty() { "distinct rows".into() } else { names.join(", ") };
    let whole = plans.values.iter().zip(&names).filter(|(value, _)| matches!(value, Value::Whole { .. }));
    let whole: Vec<&str> = whole.map(|(_, name)| *name).collect();
    match (plans.bags.len(), whole.as_slice()) {
        (0, _) => format!("{what}; no rows are kept"),
        (n_bags, []) => format!("{what}; {n_bags} columns of each group are kept in order"),
        (_, whole) => {
            format!("{what}; the rows of each group are kept, and all looked at for {}", whole.join(", "))
        }
    }
}

/// How the value of an aggregate comes about.
#[derive(Debug)]
enum Value {
    /// Of these moments.
    Moments { kind: Kind, idx: usize },
    /// Of the first or last row of a bag.
    End { bag: usize, is_last: bool },
    /// It is how many different rows a bag has.
    Different { bag: usize },
    /// Of all rows of a bag, each as often as it is there, or `once`.
    Whole { bag: usize, once: bool },
}

/// Which rows moments are of.
#[derive(Debug)]
struct MomentsPlan {
    kind: Kind,
    columns: Vec<usize>,
    filter: Option<usize>,
    /// Only the different rows of this bag.
    of_bag: Option<usize>,
}

/// Which rows are kept, and in what order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BagPlan {
    /// What they are ordered by, then what else is kept of them.
    columns: Vec<usize>,
    options: Vec<SortOptions>,
    filter: Option<usize>,
    /// Rows with a NULL in one of these are left out.
    not_null: Vec<usize>,
}

/// How all aggregates of a group come about.
#[derive(Debug, Default)]
struct Plans {
    values: Vec<Value>,
    moments: Vec<MomentsPlan>,
    bags: Vec<BagPlan>,
}

impl Plans {
    fn of(group: &Group) -> Self {
        let mut plans = Self::default();
        for call in &group.calls {
            let value = plans.value(call, &group.argument_schema);
            plans.values.push(value);
        }
        plans
    }

    fn value(&mut self, call: &Call, schema: &Schema) -> Value {
        let Call { function, columns, filter } = call;
        let filter = *filter;
        let order = function.order_bys();
        let (own, ordering) = columns.split_at(columns.len() - order.len());
        let own = own.to_vec();
        let types: Vec<DataType> = own.iter().map(|idx| schema.field(*idx).data_type().clone()).collect();
        let name = function.fun().name();
        let distinct =
            |own: Vec<usize>| BagPlan { not_null: own.clone(), columns: own, options: Vec::new(), filter };
        if let Some(kind) = Kind::of(function, &types) {
            if function.is_distinct() && kind == Kind::Count && own.len() == 1 {
                return Value::Different { bag: self.bag(distinct(own)) };
            }
            if !function.is_distinct() || own.len() == 1 {
                let of_bag = function.is_distinct().then(|| self.bag(distinct(own.clone())));
                self.moments.push(MomentsPlan { kind, columns: own, filter, of_bag });
                return Value::Moments { kind, idx: self.moments.len() - 1 };
            }
        }
        if matches!(name, "min" | "max") && types.iter().all(is_ordered_by_bytes) {
            return Value::End { bag: self.bag(distinct(own)), is_last: name == "max" };
        }
        if matches!(name, "first_value" | "last_value") && !function.is_reversed() {
            let not_null = if function.ignore_nulls() { own.clone() } else { Vec::new() };
            let options = order.iter().map(|order| order.options).collect();
            let columns = ordering.iter().copied().chain(own).collect();
            let bag = self.bag(BagPlan { columns, options, filter, not_null });
            return Value::End { bag, is_last: name == "last_value" };
        }
        let options = order.iter().map(|order| order.options).collect();
        let columns = ordering.iter().copied().chain(own).collect();
        let bag = self.bag(BagPlan { columns, options, filter, not_null: Vec::new() });
        let once = function.is_distinct() || matches!(name, "min" | "max" | "bool_and" | "bool_or");
        Value::Whole { bag, once }
    }

    /// A bag like this, which several aggregates may look at.
    fn bag(&mut self, plan: BagPlan) -> usize {
        let known = self.bags.iter().position(|bag| *bag == plan);
        known.unwrap_or_else(|| {
            self.bags.push(plan);
            self.bags.len() - 1
        })
    }
}

/// Whether the bytes of values compare as DataFusion has `min` and `max` compare them.
fn is_ordered_by_bytes(data_type: &DataType) -> bool {
    let is_calendar = matches!(data_type, DataType::Interval(_));
    data_type.is_primitive() && !is_calendar
        || data_type.is_string()
        || matches!(data_type, DataType::Boolean | DataType::Binary | DataType::BinaryView)
}

/// Computes the aggregates of groups.
pub(super) struct Aggregates {
    functions: Vec<Arc<AggregateFunctionExpr>>,
    plans: Plans,
    arguments: Codec,
    bags: Vec<Codec>,
    values: Codec,
}

impl Aggregates {
    pub(super) fn new(group: &Group) -> Result<Self> {
        let plans = Plans::of(group);
        let codec =
            |plan: &BagPlan| Codec::ordered(&bag_schema(plan, &group.argument_schema)?, &plan.options);
        // A bag has seen to it that values are different.
        let functions = group.calls.iter().zip(&plans.values).map(|(call, value)| match value {
            Value::Moments { .. } if call.function.is_distinct() => {
                of_all(&call.function, &group.input.schema)
            }
            _ => Ok(Arc::clone(&call.function)),
        });
        Ok(Self {
            functions: functions.collect::<Result<_>>()?,
            bags: plans.bags.iter().map(codec).collect::<Result<_>>()?,
            plans,
            arguments: Codec::new(&group.argument_schema)?,
            values: Codec::new(&group.values)?,
        })
    }

    fn value(&self, idx: usize, kept: &Rows) -> Result<ScalarValue> {
        let function = &self.functions[idx];
        match self.plans.values[idx] {
            Value::Moments { kind, idx } => kept.moments[idx].value(kind, function),
            Value::Different { bag } => Ok(ScalarValue::Int64(Some(kept.bags[bag].n_different() as i64))),
            Value::End { bag, is_last } => {
                let mut rows = kept.bags[bag].iter();
                let row = if is_last { rows.next_back() } else { rows.next() };
                self.of_rows(function, bag, row.map(|(row, _)| (row, 1)).into_iter().collect())
            }
            Value::Whole { bag, once } => {
                let rows = kept.bags[bag].iter().map(|(row, count)| (row, if once { 1 } else { count }));
                self.of_rows(function, bag, rows.collect())
            }
        }
    }

    /// What DataFusion gives over rows of a bag, each as often as it is there.
    fn of_rows(
        &self,
        function: &AggregateFunctionExpr,
        bag: usize,
        rows: Vec<(&[u8], i64)>,
    ) -> Result<ScalarValue> {
        let mut accumulator = function.create_accumulator()?;
        if rows.is_empty() {
            return accumulator.evaluate();
        }
        let batch = self.bags[bag].decode(rows.iter().map(|(row, _)| *row))?;
        let mut columns = batch.columns().to_vec();
        columns.rotate_left(self.plans.bags[bag].options.len());
        if rows.iter().any(|(_, count)| *count != 1) {
            let repeated = repeated(&rows)?;
            for column in &mut columns {
                *column = arrow::compute::take(column, &repeated, None)?;
            }
        }
        accumulator.update_batch(&columns)?;
        accumulator.evaluate()
    }
}

/// The function without DISTINCT.
fn of_all(function: &AggregateFunctionExpr, input: &SchemaRef) -> Result<Arc<AggregateFunctionExpr>> {
    let builder = AggregateExprBuilder::new(Arc::new(function.fun().clone()), function.expressions());
    Ok(Arc::new(builder.schema(Arc::clone(input)).alias(function.name()).build()?))
}

fn bag_schema(plan: &BagPlan, arguments: &Schema) -> Result<SchemaRef> {
    Ok(Arc::new(arguments.project(&plan.columns)?))
}

/// Each row as often as it is there.
fn repeated(rows: &[(&[u8], i64)]) -> Result<UInt32Array> {
    let mut repeated = Vec::with_capacity(rows.len());
    for (row, (_, count)) in rows.iter().enumerate() {
        let count = usize::try_from(*count).unwrap_or(0);
        if ROWS_MAX < repeated.len().saturating_add(count) {
            return exec_err!("a group has more than {ROWS_MAX} rows");
        }
        repeated.extend(std::iter::repeat_n(row as u32, count));
    }
    Ok(UInt32Array::from(repeated))
}

/// What is kept of a group.
#[derive(Debug)]
pub(super) struct Rows {
    n_rows: i64,
    moments: Vec<Moments>,
    bags: Vec<Bag>,
}

impl Kept for Rows {
    fn is_empty(&self) -> bool {
        self.n_rows == 0
    }

    fn n_rows(&self) -> usize {
        self.bags.iter().map(Bag::n_rows).sum()
    }

    fn n_bytes(&self) -> usize {
        let moments = self.moments.iter().map(|moments| size_of::<Moments>() + moments.n_bytes());
        let bags = self.bags.iter().map(|bag| size_of::<Bag>() + bag.n_bytes());
        moments.chain(bags).sum()
    }
}

/// Changes of rows, read.
pub(super) struct Ready {
    /// Which of the rows below each is; `None` for what stands for no row.
    places: Vec<Option<usize>>,
    /// By moments, their columns, and where their condition is true.
    moments: Vec<(Vec<ArrayRef>, Option<BooleanArray>)>,
    /// By bag, its rows; `None` for those that are not in it.
    bags: Vec<Vec<Option<Row>>>,
}

impl Fold for Aggregates {
    type Kept = Rows;
    type Ready = Ready;

    fn nothing(&self) -> Rows {
        Rows {
            n_rows: 0,
            moments: self.plans.moments.iter().map(|plan| plan.kind.nothing()).collect(),
            bags: self.plans.bags.iter().map(|_| Bag::default()).collect(),
        }
    }

    fn ready(&self, rows: &[&[u8]]) -> Result<Ready> {
        let mut bytes = Vec::with_capacity(rows.len());
        let places = rows.iter().map(|row| {
            let (_, row) = row.split_first().filter(|(mark, _)| **mark == SOMETHING)?;
            bytes.push(row);
            Some(bytes.len() - 1)
        });
        let places = places.collect();
        let batch = self.arguments.decode(bytes.into_iter())?;
        let columns = batch.columns();
        let of =
            |of: &[usize]| -> Vec<ArrayRef> { of.iter().map(|idx| Arc::clone(&columns[*idx])).collect() };
        let mask = |filter: Option<usize>| filter.map(|idx| is_true(columns[idx].as_boolean()));
        let moments = self
            .plans
            .moments
            .iter()
            .map(|plan| Ok((readable(plan.kind, &of(&plan.columns))?, mask(plan.filter))));
        let moments = moments.collect::<Result<_>>()?;
        let bags = self.plans.bags.iter().zip(&self.bags).map(|(plan, codec)| {
            let mask = mask(plan.filter);
            let is_in = |row: usize| {
                mask.as_ref().is_none_or(|mask| mask.value(row))
                    && !plan.not_null.iter().any(|idx| is_null(&columns[*idx], row))
            };
            let rows = codec.encode(&of(&plan.columns), batch.num_rows())?;
            Ok(rows.into_iter().enumerate().map(|(idx, row)| is_in(idx).then_some(row)).collect())
        });
        Ok(Ready { places, moments, bags: bags.collect::<Result<_>>()? })
    }

    fn change(&self, kept: &mut Rows, ready: &Ready, idx: usize, _: &[u8], diff: i64) {
        kept.n_rows += diff;
        let Some(row) = ready.places[idx] else { return };
        let mut add = |idx: usize, times: i64| {
            let (columns, mask) = &ready.moments[idx];
            if times != 0 && mask.as_ref().is_none_or(|mask| mask.value(row)) {
                kept.moments[idx].add(columns, row, times);
            }
        };
        let moments = self.plans.moments.iter().enumerate();
        moments.clone().filter(|(_, plan)| plan.of_bag.is_none()).for_each(|(idx, _)| add(idx, diff));
        for (bag, rows) in ready.bags.iter().enumerate() {
            let Some(bytes) = &rows[row] else { continue };
            let times = kept.bags[bag].add(bytes, diff);
            moments.clone().filter(|(_, plan)| plan.of_bag == Some(bag)).for_each(|(idx, _)| add(idx, times));
        }
    }

    fn rows(&self, key: &[u8], kept: &Rows) -> Result<Vec<Row>> {
        if kept.n_rows < 0 {
            return Ok(Vec::new());
        }
        let values = (0..self.functions.len()).map(|idx| self.value(idx, kept)?.to_array());
        let values = values.collect::<Result<Vec<_>>>()?;
        let rows = self.values.encode(&values, 1)?;
        Ok(rows.into_iter().map(|values| [key, &values].concat()).collect())
    }
}
