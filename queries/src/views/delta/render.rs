//! A tree of nodes as a differential dataflow.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, is_null, or};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::{JoinType, Result, internal_err};
use datafusion::physical_plan::PhysicalExpr;
use differential_dataflow::lattice::Lattice;
use differential_dataflow::operators::iterate::Variable;
use differential_dataflow::{AsCollection, VecCollection};
use logdrive_operators::Batches;
use timely::dataflow::operators::{Leave, ToStream};
use timely::dataflow::{Scope, Stream};
use timely::order::Product;
use timely::progress::Timestamp;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::health::Health;
use super::super::spec::{evaluate, is_true, run};
use super::arranged::{self, ByKey, Keyed, SEED, batchwise};
use super::asof::{self, timed};
use super::codec::{Codec, Row};
use super::failed::Failures;
use super::fold::Fold;
use super::groups::{Aggregates, NOTHING, SOMETHING};
use super::plan::{AsOf, First, Group, Join, Kind, Node, Order, Rank, Side};
use super::ranks::{InOrder, ordered};

/// How many parts the rows of ORDER BY … LIMIT are put into before the first of all are found.
const PARTS: u64 = 64;

/// A collection of rows.
pub(super) type Rows<'scope, T> = VecCollection<'scope, T, Row, isize>;

/// The times of collections: of the dataflow, and of iterations in it.
pub(super) trait Time: Timestamp + Lattice + Ord {
    /// The epoch that it is in.
    fn epoch(&self) -> u64;

    /// Renders a [`Kind::Fixpoint`].
    fn fixpoint<'scope>(
        renderer: &mut Renderer<'_, 'scope, Self>,
        start: &Node,
        step: &Node,
    ) -> Result<Rows<'scope, Self>>;

    /// Joins rows with the last that are not later.
    fn as_of<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        left: Keyed<'scope, Self>,
        right: Keyed<'scope, Self>,
        nothing: Row,
    ) -> Result<Rows<'scope, Self>>;

    /// The results of each key.
    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self>;
}

impl Time for u64 {
    fn epoch(&self) -> u64 {
        *self
    }

    fn fixpoint<'scope>(
        renderer: &mut Renderer<'_, 'scope, Self>,
        start: &Node,
        step: &Node,
    ) -> Result<Rows<'scope, Self>> {
        let start = renderer.node(start)?;
        let outer = renderer.scope;
        let leaves = renderer.leaves.clone();
        let health = renderer.health;
        let mut refused = Vec::new();
        let found = outer.iterative::<Self, _, _>(|inner| {
            let (variable, found) = Variable::new(inner, Product::new(0, 1));
            let mut renderer = Renderer {
                scope: inner,
                leaves: leaves.into_iter().map(|leaf| leaf.enter(inner)).collect(),
                found: Some(found),
                rejects: Vec::new(),
                health,
            };
            let more = renderer.node(step)?;
            let all = renderer.distinct(start.enter(inner).concat(more));
            variable.set(all.clone());
            refused.extend(renderer.rejects.into_iter().map(|rejects| rejects.leave(outer)));
            Ok::<_, datafusion::common::DataFusionError>(all.leave(outer))
        })?;
        renderer.rejects.append(&mut refused);
        Ok(found)
    }

    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self> {
        super::fold::fold(input, name, renderer.health, fold)
    }

    fn as_of<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        left: Keyed<'scope, Self>,
        right: Keyed<'scope, Self>,
        nothing: Row,
    ) -> Result<Rows<'scope, Self>> {
        Ok(asof::join(left, right, nothing, renderer.health))
    }
}

impl Time for Product<u64, u64> {
    fn epoch(&self) -> u64 {
        self.outer
    }

    fn fixpoint<'scope>(
        _: &mut Renderer<'_, 'scope, Self>,
        _: &Node,
        _: &Node,
    ) -> Result<Rows<'scope, Self>> {
        internal_err!("a recursion within a recursion")
    }

    /// Times do not follow each other here: a round changes what it gave at an earlier epoch. So the rows are arranged,
    /// and each key's are looked at anew.
    fn fold<'scope>(
        renderer: &Renderer<'_, 'scope, Self>,
        input: Keyed<'scope, Self>,
        name: &str,
        fold: impl Fold,
    ) -> Rows<'scope, Self> {
        let health = renderer.health.clone();
        let input = renderer.arrange(input, name);
        let reduced = arranged::reduce(input, name, move |key, rows, out| {
            let results = health.check(fold.whole(key, rows));
            out.extend(results.into_iter().map(|row| (row, 1)));
        });
        arranged::charge(&reduced, renderer.health);
        reduced.as_collection(|_, row| row.clone())
    }

    fn as_of<'scope>(
        _: &Renderer<'_, 'scope, Self>,
        _: Keyed<'scope, Self>,
        _: Keyed<'scope, Self>,
        _: Row,
    ) -> Result<Rows<'scope, Self>> {
        internal_err!("an ASOF JOIN in a recursion")
    }
}

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
        arranged::charge(&arranged, self.health);
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
        arranged::charge(&keys, self.health);
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

    fn join(&mut self, join: &Join) -> Result<Rows<'scope, T>> {
        // A key with a NULL matches nothing: it ends otherwise on each side.
        let marks = if join.nulls_match { [None, None] } else { [Some(1), Some(2)] };
        let (left, right) = (self.node(&join.left)?, self.node(&join.right)?);
        let left = self.keyed(left, &join.left.schema, &join.left_keys, marks[0])?;
        let right = self.keyed(right, &join.right.schema, &join.right_keys, marks[1])?;
        let (left, right) = (self.arrange(left, "left"), self.arrange(right, "right"));
        // Without a condition beside the keys it is enough to look at these.
        let pairs = match &join.filter {
            Some(condition) => {
                let pairs = left.clone().join_core(right.clone(), |_, l, r| Some((l.clone(), r.clone())));
                Some(self.filter(pairs, &join.both, condition)?)
            }
            None => None,
        };
        let mut parts = Vec::new();
        if matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full) {
            parts.push(match &pairs {
                Some(pairs) => pairs.clone().map(|(l, r)| [l, r].concat()),
                None => left.clone().join_core(right.clone(), |_, l, r| Some([l.as_slice(), r].concat())),
            });
        }
        if !matches!(join.join_type, JoinType::Inner | JoinType::Right) {
            let pairs = pairs.clone().map(|pairs| pairs.map(|(l, _)| l));
            let (matched, unmatched) = self.matched(&left, &right, pairs);
            match join.join_type {
                JoinType::LeftSemi => parts.push(matched),
                JoinType::LeftAnti => parts.push(unmatched),
                JoinType::LeftMark => {
                    let (yes, no) = (mark_row(true)?, mark_row(false)?);
                    parts.push(matched.map(move |row| [row.as_slice(), &yes].concat()));
                    parts.push(unmatched.map(move |row| [row.as_slice(), &no].concat()));
                }
                _ => {
                    let nulls = null_row(&join.right.schema)?;
                    parts.push(unmatched.map(move |row| [row.as_slice(), &nulls].concat()));
                }
            }
        }
        if matches!(join.join_type, JoinType::Right | JoinType::Full) {
            let pairs = pairs.map(|pairs| pairs.map(|(_, r)| r));
            let (_, unmatched) = self.matched(&right, &left, pairs);
            let nulls = null_row(&join.left.schema)?;
            parts.push(unmatched.map(move |row| [nulls.as_slice(), &row].concat()));
        }
        Ok(differential_dataflow::collection::concatenate(self.scope, parts))
    }

    /// The pairs for which a condition is true.
    fn filter(
        &mut self,
        pairs: Keyed<'scope, T>,
        both: &SchemaRef,
        condition: &Arc<dyn PhysicalExpr>,
    ) -> Result<Keyed<'scope, T>> {
        let (codec, condition) = (Codec::new(both)?, Arc::clone(condition));
        let decode = move |pairs: &[((Row, Row), T, isize)]| {
            let rows: Vec<Row> = pairs.iter().map(|((l, r), ..)| [l.as_slice(), r].concat()).collect();
            codec.decode(rows.iter().map(Vec::as_slice))
        };
        let work = move |rows: &RecordBatch| {
            let mask = condition.evaluate(rows)?.into_array(rows.num_rows())?;
            let mask = is_true(mask.as_boolean());
            let passes = mask.values().iter().enumerate().filter(|(_, passes)| *passes);
            Ok(passes.map(|(idx, _)| (idx, ())).collect())
        };
        let (pairs, rejects) =
            batchwise(pairs, "condition", self.health, decode, work, |pair: &(Row, Row), ()| pair.clone());
        self.rejects.push(rejects);
        Ok(pairs)
    }

    /// The rows of `left` that have a match in `right`, and those that have none. `pairs` are the rows that have one, if
    /// the key alone does not say it.
    fn matched(
        &mut self,
        left: &ByKey<'scope, T>,
        right: &ByKey<'scope, T>,
        pairs: Option<Rows<'scope, T>>,
    ) -> (Rows<'scope, T>, Rows<'scope, T>) {
        let all = left.clone().as_collection(|_, row| row.clone());
        let matched = match pairs {
            None => {
                let keys = self.keys(right.clone());
                left.clone().join_core(keys, |_, row, _| Some(row.clone()))
            }
            Some(pairs) => {
                let pairs = self.arrange(pairs.map(|row| (row, Row::new())), "matched");
                let pairs = self.keys(pairs);
                let rows = self.arrange(all.clone().map(|row| (row, Row::new())), "rows");
                rows.join_core(pairs, |row, _, _| Some(row.clone()))
            }
        };
        let unmatched = all.concat(matched.clone().negate());
        (matched, unmatched)
    }

    fn as_of(&mut self, join: &AsOf) -> Result<Rows<'scope, T>> {
        let left = self.timed(&join.left, join, true)?;
        let right = self.timed(&join.right, join, false)?;
        T::as_of(self, left, right, null_row(&join.right.input.schema)?)
    }

    /// The rows of a side by key, behind their times, so that the partner is the last one that is not later.
    fn timed(&mut self, side: &Side, join: &AsOf, is_left: bool) -> Result<Keyed<'scope, T>> {
        let (rows, schema) = (self.node(&side.input)?, &side.input.schema);
        let (keys, key_codec) = (side.keys.clone(), Codec::new(&types(&side.keys, schema)?)?);
        let (row_codec, time) = (Codec::new(schema)?, Arc::clone(&side.time));
        let (is_next, earlier) = (join.is_next, i64::from(is_left && join.is_strict));
        let work = move |rows: &RecordBatch| {
            let columns = evaluate(&keys, rows)?;
            let has_null = any_null(&columns, rows.num_rows())?;
            let times = cast(&time.evaluate(rows)?.into_array(rows.num_rows())?, &DataType::Int64)?;
            let times = times.as_primitive::<Int64Type>();
            let keys = key_codec.encode(&columns, rows.num_rows())?;
            let encoded = row_codec.encode(rows.columns(), rows.num_rows())?;
            let mut keyed = Vec::with_capacity(rows.num_rows());
            for (idx, (mut key, row)) in keys.into_iter().zip(encoded).enumerate() {
                let matches_nothing = has_null.value(idx) || times.is_null(idx);
                if matches_nothing && !is_left {
                    continue;
                }
                key.push(u8::from(matches_nothing));
                let at = if is_next { times.value(idx).saturating_neg() } else { times.value(idx) };
                keyed.push((idx, (key, timed(at.saturating_sub(earlier), &row))));
            }
            Ok(keyed)
        };
        let decode = decode(Codec::new(schema)?);
        let (keyed, rejects) = batchwise(rows, "time", self.health, decode, work, |_, keyed| keyed);
        self.rejects.push(rejects);
        Ok(keyed)
    }

    fn group(&mut self, group: &Group) -> Result<Rows<'scope, T>> {
        let schema = &group.input.schema;
        let rows = self.node(&group.input)?;
        let (keys, key_codec) = (group.keys.clone(), Codec::new(&types(&group.keys, schema)?)?);
        let (arguments, argument_codec) = (group.arguments.clone(), Codec::new(&group.argument_schema)?);
        let work = move |rows: &RecordBatch| {
            let keys = key_codec.encode(&evaluate(&keys, rows)?, rows.num_rows())?;
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

fn null_row(schema: &SchemaRef) -> Result<Row> {
    let columns: Vec<ArrayRef> =
        schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
    Ok(Codec::new(schema)?.encode(&columns, 1)?.pop().unwrap_or_default())
}

fn mark_row(mark: bool) -> Result<Row> {
    let schema = Arc::new(Schema::new(vec![Field::new("mark", DataType::Boolean, true)]));
    let column: ArrayRef = Arc::new(BooleanArray::from(vec![mark]));
    Ok(Codec::new(&schema)?.encode(&[column], 1)?.pop().unwrap_or_default())
}
