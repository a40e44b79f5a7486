//! Joins.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::{JoinType, Result};
use datafusion::physical_plan::PhysicalExpr;

use super::super::super::spec::{evaluate, is_true};
use super::super::arranged::{ByKey, Keyed, batchwise};
use super::super::asof::timed;
use super::super::codec::{Codec, Row};
use super::super::plan::{AsOf, Join, Side};
use super::{Renderer, Rows, Time, any_null, decode, types};

impl<'scope, T: Time> Renderer<'_, 'scope, T> {
    pub(super) fn join(&mut self, join: &Join) -> Result<Rows<'scope, T>> {
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

    pub(super) fn as_of(&mut self, join: &AsOf) -> Result<Rows<'scope, T>> {
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
