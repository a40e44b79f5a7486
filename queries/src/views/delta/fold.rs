//! What is computed of the rows of a key, when a change costs what changed and not the rows that are there.

use datafusion::common::Result;
use differential_dataflow::consolidation::consolidate;
use differential_dataflow::{AsCollection, VecCollection};
use logdrive_operators::flow::{OpenEpochs, frontier};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::health::Health;
use super::arranged::{Keyed, SEED};
use super::codec::{ROW_BYTES, Row, RowMap};
use super::failed::{bad, good};

/// How many changes are looked at together.
const CHUNK: usize = 8192;

/// What is kept for each key, and what it gives.
pub(super) trait Fold: 'static {
    /// What is kept for a key.
    type Kept: Kept;
    /// Rows, ready to be taken in.
    type Ready;

    /// What is kept for a key without rows.
    fn nothing(&self) -> Self::Kept;

    /// Prepares rows of any keys.
    ///
    /// # Errors
    /// If they cannot be read, which is a fault.
    fn ready(&self, rows: &[&[u8]]) -> Result<Self::Ready>;

    /// Takes in that `row`, the one at `idx` of those that are ready, comes or goes.
    fn change(&self, kept: &mut Self::Kept, ready: &Self::Ready, idx: usize, row: &[u8], diff: i64);

    /// The rows that a key gives.
    ///
    /// # Errors
    /// If they cannot be computed of these rows.
    fn rows(&self, key: &[u8], kept: &Self::Kept) -> Result<Vec<Row>>;

    /// What a key gives of all its rows at once, or why it gives nothing.
    ///
    /// # Errors
    /// If the rows cannot be read.
    fn whole(&self, key: &[u8], rows: &[(&Row, isize)]) -> Result<Vec<Row>> {
        let mut kept = self.nothing();
        let bytes: Vec<&[u8]> = rows.iter().map(|(row, _)| row.as_slice()).collect();
        let ready = self.ready(&bytes)?;
        for (idx, (row, diff)) in rows.iter().enumerate() {
            self.change(&mut kept, &ready, idx, row, *diff as i64);
        }
        Ok(self.results(key, &kept))
    }

    /// What a key gives, or why it gives nothing.
    fn results(&self, key: &[u8], kept: &Self::Kept) -> Vec<Row> {
        if kept.is_empty() {
            return Vec::new();
        }
        match self.rows(key, kept) {
            Ok(rows) => rows.iter().map(|row| good(row)).collect(),
            Err(error) => vec![bad(&error)],
        }
    }
}

/// What is kept for a key.
pub(super) trait Kept {
    /// Whether the key has no rows.
    fn is_empty(&self) -> bool;

    /// How many rows are kept.
    fn n_rows(&self) -> usize;

    /// About how many bytes they take.
    fn n_bytes(&self) -> usize;
}

/// A key.
struct Entry<K> {
    kept: K,
    /// What it gives.
    told: Vec<Row>,
    /// Rows and bytes of both.
    size: (usize, usize),
}

/// All keys of a worker.
struct Keys<F: Fold> {
    fold: F,
    entries: RowMap<Entry<F::Kept>>,
    /// Rows and bytes.
    size: (usize, usize),
}

type Change = ((Row, Row), isize);

impl<F: Fold> Keys<F> {
    fn new(fold: F) -> Self {
        Self { fold, entries: RowMap::default(), size: (0, 0) }
    }

    /// Takes in all changes of an epoch; how the results change.
    fn epoch(&mut self, mut changes: Vec<Change>) -> Result<Vec<(Row, isize)>> {
        consolidate(&mut changes);
        for chunk in changes.chunks(CHUNK) {
            let rows: Vec<&[u8]> = chunk.iter().map(|((_, row), _)| row.as_slice()).collect();
            let ready = self.fold.ready(&rows)?;
            #[cfg(test)]
            super::bag::looked_at::add(rows.len());
            for (idx, ((key, row), diff)) in chunk.iter().enumerate() {
                let kept = match self.entries.get_mut(key) {
                    Some(entry) => &mut entry.kept,
                    None => {
                        let entry = Entry { kept: self.fold.nothing(), told: Vec::new(), size: (0, 0) };
                        &mut self.entries.entry(key.clone()).or_insert(entry).kept
                    }
                };
                self.fold.change(kept, &ready, idx, row, *diff as i64);
            }
        }
        let mut results = Vec::new();
        for of_key in changes.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
            self.tell(&of_key[0].0.0, &mut results);
        }
        Ok(results)
    }

    /// Brings what a key gives up to date.
    fn tell(&mut self, key: &Row, results: &mut Vec<(Row, isize)>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let now = self.fold.results(key, &entry.kept);
        if now != entry.told {
            let before = std::mem::replace(&mut entry.told, now);
            let before = before.into_iter().map(|row| (row, -1));
            let mut changes: Vec<_> = before.chain(entry.told.iter().map(|row| (row.clone(), 1))).collect();
            consolidate(&mut changes);
            results.append(&mut changes);
        }

        let (n_rows, n_bytes) = std::mem::take(&mut entry.size);
        self.size = (self.size.0 - n_rows, self.size.1 - n_bytes);
        if entry.kept.is_empty() {
            self.entries.remove(key);
            return;
        }
        let told: usize = entry.told.iter().map(|row| row.len() + ROW_BYTES).sum();
        let own = key.len() + ROW_BYTES + size_of::<Entry<F::Kept>>();
        entry.size = (entry.kept.n_rows().max(1), entry.kept.n_bytes() + told + own);
        self.size = (self.size.0 + entry.size.0, self.size.1 + entry.size.1);
    }

    fn clear(&mut self) {
        (self.entries, self.size) = (RowMap::default(), (0, 0));
    }
}

/// Keeps what `fold` does for each key; its results, good or bad.
///
/// Epochs follow each other, so there is no need to know what was at an earlier one, as an arrangement does.
pub(super) fn fold<'scope, F: Fold>(
    input: Keyed<'scope, u64>,
    name: &str,
    health: &Health,
    fold: F,
) -> VecCollection<'scope, u64, Row, isize> {
    let health = health.clone();
    let mut keys = Keys::new(fold);
    let mut builder = OperatorBuilder::new(name.to_owned(), input.inner.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let by_key = Exchange::new(|((key, _), ..): &((Row, Row), u64, isize)| xxh3_64_with_seed(key, SEED));
    let mut input = builder.new_input(input.inner, by_key);
    let (output, results) = builder.new_output::<Vec<(Row, u64, isize)>>();
    let mut output = OutputBuilder::<u64, CapacityContainerBuilder<Vec<(Row, u64, isize)>>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open = OpenEpochs::<(Capability<u64>, Vec<Change>)>::default();
        move |frontiers| {
            let mut output = output.activate();
            input.for_each(|capability, updates| {
                for (row, time, diff) in updates.drain(..) {
                    let at = || (capability.delayed(&time, 0), Vec::new());
                    open.at(time, at).1.push((row, diff));
                }
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, (capability, changes))) = open.pop_complete(frontier) {
                if health.is_stopped() {
                    keys.clear();
                    continue;
                }
                let results = health.check(keys.epoch(changes));
                output
                    .session(&capability)
                    .give_iterator(results.into_iter().map(|(row, diff)| (row, epoch, diff)));
            }
            health.charge(slot, keys.size.0, keys.size.1);
        }
    });
    results.as_collection()
}

#[cfg(test)]
mod tests {
    use super::super::bag::looked_at;
    use super::super::groups::{Aggregates, SOMETHING};
    use super::super::plan::{Group, Kind, Node, Rank};
    use super::super::ranks::{InOrder, ordered};
    use super::super::{Codec, lower};
    use super::*;
    use crate::functions::Functions;
    use crate::views::sql;
    use crate::views::tests::{events, options, row_like_no_other};
    use crate::views::{Emit, Table};

    /// Of a group as large as this.
    const N_ROWS: i64 = 100_000;

    fn lowered(select: &str) -> Node {
        let tables = [Table { changes: true, ..events() }];
        let planned = sql::plan(select, &tables, &Functions::default()).unwrap();
        let (plan, state) = planned.any().unwrap();
        let mut node = lower::lower(&plan, &state, &tables, &options(Emit::Changes)).unwrap().root;
        while let Kind::Stages(input, _) = node.kind {
            node = *input;
        }
        node
    }

    fn group(aggregates: &str) -> Box<Group> {
        let Kind::Group(group) = lowered(&format!("SELECT {aggregates} FROM events GROUP BY tenant")).kind
        else {
            panic!("no group");
        };
        group
    }

    /// What looking at one more row costs when the others are there.
    fn cost_of_one(fold: impl Fold, row: impl Fn(i64) -> Row) -> usize {
        let mut keys = Keys::new(fold);
        let key = b"key".to_vec();
        keys.epoch((0..N_ROWS).map(|n| ((key.clone(), row(n)), 1)).collect()).unwrap();
        looked_at::take();
        let told = keys.epoch(vec![((key.clone(), row(N_ROWS / 2)), -1), ((key, row(N_ROWS)), 1)]).unwrap();
        assert!(!told.is_empty(), "something changes");
        looked_at::take()
    }

    #[test]
    fn a_change_does_not_cost_the_group() {
        for (aggregates, most) in [
            (
                "count(*) AS c, sum(n) AS total, avg(amount) AS mean, stddev(amount) AS d, corr(amount, n) AS r",
                2,
            ),
            ("bit_xor(n) AS x, count(*) FILTER (WHERE n > 7) AS c", 2),
            ("min(n) AS least, max(n) AS most, first_value(amount ORDER BY n DESC) AS first", 5),
            ("count(DISTINCT n) AS kinds, sum(DISTINCT n) AS total, max(n) AS most", 3),
        ] {
            let group = group(aggregates);
            let codec = Codec::new(&group.argument_schema).unwrap();
            let row = |n: i64| {
                let all = row_like_no_other(n, &group.input.schema);
                let values: Vec<_> = group
                    .arguments
                    .iter()
                    .map(|argument| argument.evaluate(&all).unwrap().into_array(1).unwrap())
                    .collect();
                [vec![SOMETHING], codec.encode(&values, 1).unwrap().remove(0)].concat()
            };
            let cost = cost_of_one(Aggregates::new(&group).unwrap(), row);
            assert!(cost <= most, "{aggregates}: {cost} rows were looked at");
        }
    }

    #[test]
    fn a_change_costs_the_first_rows_of_a_partition() {
        let node = lowered(
            "SELECT tenant, n FROM (SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY n DESC) AS k FROM events) \
             WHERE k <= 3",
        );
        let Kind::Rank(rank) = &node.kind else { panic!("no window functions: {node:?}") };
        let Rank { input, order, functions, limit, .. } = &**rank;
        let codec = ordered(&input.schema, order).unwrap();
        let row = |n: i64| {
            let all = row_like_no_other(n, &input.schema);
            let by = order.iter().map(|order| order.by.evaluate(&all).unwrap().into_array(1).unwrap());
            let columns: Vec<_> = by.chain(all.columns().iter().map(std::sync::Arc::clone)).collect();
            codec.encode(&columns, 1).unwrap().remove(0)
        };
        let fold = InOrder::new(&input.schema, order, 0, limit.unwrap()).unwrap();
        let cost = cost_of_one(fold.with(functions, &node.schema).unwrap(), row);
        assert!(cost <= 2 + 3, "{cost} rows were looked at");
    }
}
