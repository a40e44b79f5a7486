//! A tree of nodes as a differential dataflow.

mod joins;
mod time;

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{is_null, or};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{Result, internal_err};
use datafusion::physical_plan::PhysicalExpr;
use differential_dataflow::{AsCollection, VecCollection};
use logdrive_operators::Batches;
use timely::dataflow::operators::ToStream;
use timely::dataflow::{Scope, Stream};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(super) use self::time::Time;
use super::super::health::Health;
use super::super::spec::{evaluate, evaluate_keys, run};
use super::arranged::{self, ByKey, Keyed, SEED, batchwise};
use super::codec::{Codec, Row};
use super::failed::Failures;
use super::fold::Fold;
use super::groups::{Aggregates, NOTHING, SOMETHING};
use super::plan::{First, Group, Kind, Node, Order, Rank};
use super::ranks::{InOrder, ordered};

/// How many parts the rows of ORDER BY … LIMIT are put into before the first of all are found.
const PARTS: u64 = 64;

/// A collection of rows.
pub(super) type Rows<'scope, T> = VecCollection<'scope, T, Row, isize>;

/// Builds the dataflow of nodes in one scope.
pub(super) struct Renderer<'a, 'scope, T: Time> {
    pub(super) scope: Scope<'scope, T>,
    /// The rows of the leaves, by number.
    pub(super) leaves: Vec<Rows<'scope, T>>,
    /// In an iteration: what was found so far.
    pub(super) found: Option<Rows<'scope, T>>,
    /// What failed.
    pub(super) rejects: Vec<Stream<'scope, T, Batches>>,
    pub(super) health: &'a Health,
}

impl<'scope, T: Time> Renderer<'_, 'scope, T> {
    pub(super) fn node(&mut self, node: &Node) -> Result<Rows<'scope, T>> {
        match &node.kind {
            Kind::Leaf(idx) => Ok(self.leaves[*idx].clone()),
            Kind::Found => match &self.found {
                Some(found) => Ok(found.clone()),
                None => internal_err!("nothing is looked for here"),
            },
            Kind::Stages(input, stages) => {
                let rows = self.node(input)?;
                let (from, to) = (Codec::new(&input.schema)?, Codec::new(&node.schema)?);
                let stages = Arc::clone(stages);
                let work = move |rows: &RecordBatch| {
                    let staged = run(&stages, rows)?;
                    let encoded = to.encode(staged.rows.columns(), staged.rows.num_rows())?;
                    Ok(staged.indices.values().iter().map(|idx| *idx as usize).zip(encoded).collect())
                };
                let (rows, rejects) =
                    batchwise(rows, "stages", self.health, decode(from), work, |_, row| row);
                self.rejects.push(rejects);
                Ok(rows)
            }
            Kind::Join(join) => self.join(join),
            Kind::AsOf(join) => self.as_of(join),
            Kind::Group(group) => self.group(group),
            Kind::Rank(rank) => self.rank(rank, &node.schema),
            Kind::First(first) => self.first(first),
            Kind::Union(inputs) => {
                let inputs = inputs.iter().map(|input| self.node(input)).collect::<Result<Vec<_>>>()?;
                Ok(differential_dataflow::collection::concatenate(self.scope, inputs))
            }
            Kind::Fixpoint { start, step } => T::fixpoint(self, start, step),
        }
    }

    fn arrange(&self, rows: Keyed<'scope, T>, name: &str) -> ByKey<'scope, T> {
        let arranged = arranged::arrange(rows, name);
        arranged::charge(&arranged, name, self.health);
        arranged
    }

    /// What `fold` makes of each key's rows; a key that fails becomes a reject.
    fn fold(&mut self, input: Keyed<'scope, T>, name: &str, fold: impl Fold) -> Rows<'scope, T> {
        let results = T::fold(self, input, name, fold);
        let (rows, rejects) = Failures::new(self.health).split(results);
        self.rejects.push(rejects);
        rows
    }

    /// Each key once.
    fn keys(&mut self, input: ByKey<'scope, T>) -> ByKey<'scope, T> {
        let keys = arranged::reduce(input, "keys", |_, rows, out| {
            if rows.iter().any(|(_, diff)| *diff > 0) {
                out.push((Row::new(), 1));
            }
        });
        arranged::charge(&keys, "keys", self.health);
        keys
    }

    /// Each row once.
    fn distinct(&mut self, rows: Rows<'scope, T>) -> Rows<'scope, T> {
        let by_row = self.arrange(rows.map(|row| (row, Row::new())), "rows");
        self.keys(by_row).as_collection(|row, _| row.clone())
    }

    /// Rows with the values of expressions before them. `marks_null`: of rows with a NULL among the values these end
    /// with it, those of others with 0.
    fn keyed(
        &mut self,
        rows: Rows<'scope, T>,
        schema: &SchemaRef,
        keys: &[Arc<dyn PhysicalExpr>],
        marks_null: Option<u8>,
    ) -> Result<Keyed<'scope, T>> {
        let codec = Codec::new(&types(keys, schema)?)?;
        let keys = keys.to_vec();
        let work = move |rows: &RecordBatch| {
            let columns = evaluate(&keys, rows)?;
            let mut encoded = codec.encode(&columns, rows.num_rows())?;
            if let Some(mark) = marks_null {
                let has_null = any_null(&columns, rows.num_rows())?;
                for (idx, key) in encoded.iter_mut().enumerate() {
                    key.push(if has_null.value(idx) { mark } else { 0 });
                }
            }
            Ok(encoded.into_iter().enumerate().collect())
        };
        let decode = decode(Codec::new(schema)?);
        let (rows, rejects) =
            batchwise(rows, "key", self.health, decode, work, |row: &Row, key| (key, row.clone()));
        self.rejects.push(rejects);
        Ok(rows)
    }

    fn group(&mut self, group: &Group) -> Result<Rows<'scope, T>> {
        let schema = &group.input.schema;
        let rows = self.node(&group.input)?;
        let (keys, key_codec) = (group.keys.clone(), Codec::new(&types(&group.keys, schema)?)?);
        let (arguments, argument_codec) = (group.arguments.clone(), Codec::new(&group.argument_schema)?);
        let work = move |rows: &RecordBatch| {
            let keys = key_codec.encode(&evaluate_keys(&keys, rows)?, rows.num_rows())?;
            let values = argument_codec.encode(&evaluate(&arguments, rows)?, rows.num_rows())?;
            let marked = values.into_iter().map(|value| [&[SOMETHING], value.as_slice()].concat());
            Ok(keys.into_iter().zip(marked).enumerate().collect())
        };
        let decode = decode(Codec::new(schema)?);
        let (mut keyed, rejects) = batchwise(rows, "group", self.health, decode, work, |_, keyed| keyed);
        self.rejects.push(rejects);
        if group.keys.is_empty() {
            let nothing = ((Row::new(), vec![NOTHING]), T::minimum(), 1);
            let nothing = (self.health.cx.index == 0).then_some(nothing);
            keyed = keyed.concat(nothing.into_iter().to_stream(self.scope).as_collection());
        }
        Ok(self.fold(keyed, "groups", Aggregates::new(group)?))
    }

    fn rank(&mut self, rank: &Rank, schema: &SchemaRef) -> Result<Rows<'scope, T>> {
        let (rows, input) = (self.node(&rank.input)?, &rank.input.schema);
        let keys = Codec::new(&types(&rank.partition, input)?)?;
        let partition = rank.partition.clone();
        let key = move |rows: &RecordBatch| keys.encode(&evaluate(&partition, rows)?, rows.num_rows());
        let keyed = self.ordered(rows, input, &rank.order, key)?;
        let in_order = InOrder::new(input, &rank.order, 0, rank.limit.unwrap_or(usize::MAX))?;
        Ok(self.fold(keyed, "partitions", in_order.with(&rank.functions, schema)?))
    }

    fn first(&mut self, first: &First) -> Result<Rows<'scope, T>> {
        let (rows, schema) = (self.node(&first.input)?, &first.input.schema);
        // The first of all are among the first of each part, and parts are on all workers.
        let codec = Codec::new(schema)?;
        let part = move |rows: &RecordBatch| {
            let part = |row: Row| vec![(xxh3_64_with_seed(&row, !SEED) % PARTS) as u8];
            Ok(codec.encode(rows.columns(), rows.num_rows())?.into_iter().map(part).collect())
        };
        let parts = self.ordered(rows, schema, &first.order, part)?;
        let n_first = first.skip.saturating_add(first.fetch);
        let rows = self.fold(parts, "first of parts", InOrder::new(schema, &first.order, 0, n_first)?);
        let all = |rows: &RecordBatch| Ok(vec![Row::new(); rows.num_rows()]);
        let all = self.ordered(rows, schema, &first.order, all)?;
        Ok(self.fold(all, "first", InOrder::new(schema, &first.order, first.skip, first.fetch)?))
    }

    /// Rows with a key, in the form in which [`InOrder`] takes them.
    fn ordered(
        &mut self,
        rows: Rows<'scope, T>,
        schema: &SchemaRef,
        order: &[Order],
        key: impl Fn(&RecordBatch) -> Result<Vec<Row>> + 'static,
    ) -> Result<Keyed<'scope, T>> {
        let codec = ordered(schema, order)?;
        let by: Vec<_> = order.iter().map(|order| Arc::clone(&order.by)).collect();
        let work = move |rows: &RecordBatch| {
            let mut columns = evaluate(&by, rows)?;
            columns.extend(rows.columns().iter().map(Arc::clone));
            let encoded = codec.encode(&columns, rows.num_rows())?;
            Ok(key(rows)?.into_iter().zip(encoded).enumerate().collect())
        };
        let decode = decode(Codec::new(schema)?);
        let (keyed, rejects) = batchwise(rows, "order", self.health, decode, work, |_, keyed| keyed);
        self.rejects.push(rejects);
        Ok(keyed)
    }
}

fn decode<T>(codec: Codec) -> impl Fn(&[(Row, T, isize)]) -> Result<RecordBatch> + 'static {
    move |rows| codec.decode(rows.iter().map(|(row, ..)| row.as_slice()))
}

/// The columns that expressions give.
fn types(expressions: &[Arc<dyn PhysicalExpr>], schema: &Schema) -> Result<SchemaRef> {
    let field = |(idx, expr): (usize, &Arc<dyn PhysicalExpr>)| {
        let data_type: DataType = expr.data_type(schema)?;
        Ok(Field::new(format!("k{idx}"), data_type, true))
    };
    let fields: Vec<Field> = expressions.iter().enumerate().map(field).collect::<Result<_>>()?;
    Ok(Arc::new(Schema::new(fields)))
}

fn any_null(columns: &[ArrayRef], n_rows: usize) -> Result<BooleanArray> {
    let mut any = BooleanArray::from(vec![false; n_rows]);
    for column in columns {
        any = or(&any, &is_null(column)?)?;
    }
    Ok(any)
}
