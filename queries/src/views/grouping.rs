//! Groups and their aggregates, by DataFusion's vectorised hash tables and accumulators.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::accumulators::of_groups;
use super::keep::ALWAYS;
use super::log::pane_column;
use super::spec::{Aggregation, Arguments};

/// A hash table of groups. What is taken out is gone: the table is empty afterwards and can be used again.
pub(super) struct Grouping {
    groups: Box<dyn GroupValues>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// How many columns the state of each accumulator has.
    n_states: Vec<usize>,
    part_schema: SchemaRef,
    n_keys: usize,
    indices: Vec<usize>,
}

impl Grouping {
    pub(super) fn new(aggregation: &Aggregation) -> Result<Self> {
        let n_keys = aggregation.n_keys();
        let key_schema = Schema::new(aggregation.part_schema.fields()[..n_keys].to_vec());
        let accumulators = aggregation.aggregates.iter().map(|aggregate| of_groups(&aggregate.function));
        Ok(Self {
            groups: new_group_values(Arc::new(key_schema), &GroupOrdering::None)?,
            accumulators: accumulators.collect::<Result<_>>()?,
            n_states: aggregation.aggregates.iter().map(|aggregate| aggregate.n_states).collect(),
            part_schema: Arc::clone(&aggregation.part_schema),
            n_keys,
            indices: Vec::new(),
        })
    }

    /// The number of groups.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Adds rows. The first column of the key is the pane.
    pub(super) fn update(&mut self, pane: ArrayRef, arguments: &Arguments) -> Result<()> {
        let keys: Vec<ArrayRef> =
            std::iter::once(pane).chain(arguments.keys.iter().map(Arc::clone)).collect();
        self.groups.intern(&keys, &mut self.indices)?;
        let n_groups = self.groups.len();
        for ((accumulator, columns), filter) in
            self.accumulators.iter_mut().zip(&arguments.arguments).zip(&arguments.filters)
        {
            accumulator.update_batch(columns, &self.indices, filter.as_ref(), n_groups)?;
        }
        Ok(())
    }

    /// Adds a part, under another pane if one is given. Returns which group each of its rows is in.
    pub(super) fn merge(&mut self, columns: &[ArrayRef], pane: Option<ArrayRef>) -> Result<&[usize]> {
        let (keys, states) = columns.split_at(self.n_keys);
        match pane {
            Some(pane) => {
                let keys: Vec<ArrayRef> =
                    std::iter::once(pane).chain(keys[1..].iter().map(Arc::clone)).collect();
                self.groups.intern(&keys, &mut self.indices)?;
            }
            None => self.groups.intern(keys, &mut self.indices)?,
        }
        self.add_states(states)?;
        Ok(&self.indices)
    }

    /// The part of the one group that a query without GROUP BY has, before there are rows.
    pub(super) fn of_no_rows(&mut self, aggregation: &Aggregation) -> Result<RecordBatch> {
        self.groups.intern(&[pane_column(ALWAYS, 1)], &mut self.indices)?;
        let nothing = BooleanArray::from(vec![false]);
        for (accumulator, aggregate) in self.accumulators.iter_mut().zip(&aggregation.aggregates) {
            let row = aggregate.types.iter().map(|data_type| new_null_array(data_type, 1));
            accumulator.update_batch(&row.collect::<Vec<_>>(), &self.indices, Some(&nothing), 1)?;
        }
        self.take_part()
    }

    fn add_states(&mut self, mut states: &[ArrayRef]) -> Result<()> {
        let n_groups = self.groups.len();
        for (accumulator, n_states) in self.accumulators.iter_mut().zip(&self.n_states) {
            let (own, rest) = states.split_at(*n_states);
            accumulator.merge_batch(own, &self.indices, n_groups)?;
            states = rest;
        }
        Ok(())
    }

    fn take_keys(&mut self) -> Result<Vec<ArrayRef>> {
        let n_groups = self.groups.len();
        let keys = self.groups.emit(EmitTo::All)?;
        // What is emitted is still in the hash table.
        self.groups.clear_shrink(n_groups);
        Ok(keys)
    }

    /// Takes everything out as a part.
    pub(super) fn take_part(&mut self) -> Result<RecordBatch> {
        let mut columns = self.take_keys()?;
        for accumulator in &mut self.accumulators {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.part_schema), columns)?)
    }

    /// Takes everything out: the keys and the aggregates' values.
    pub(super) fn take_values(&mut self) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        let keys = self.take_keys()?;
        let values = self.accumulators.iter_mut().map(|a| a.evaluate(EmitTo::All)).collect::<Result<_>>()?;
        Ok((keys, values))
    }

    /// Takes everything out, as a part and as values.
    pub(super) fn take_both(&mut self) -> Result<(RecordBatch, Vec<ArrayRef>)> {
        let part = self.take_part()?;
        // What an accumulator gives away it forgets; its state brings it back.
        self.indices.clear();
        self.indices.extend(0..part.num_rows());
        let (n_groups, mut states) = (part.num_rows(), &part.columns()[self.n_keys..]);
        let mut values = Vec::with_capacity(self.accumulators.len());
        for (accumulator, n_states) in self.accumulators.iter_mut().zip(&self.n_states) {
            let (own, rest) = states.split_at(*n_states);
            accumulator.merge_batch(own, &self.indices, n_groups)?;
            values.push(accumulator.evaluate(EmitTo::All)?);
            states = rest;
        }
        Ok((part, values))
    }
}
