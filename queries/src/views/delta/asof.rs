//! Joins each row with the one that was the latest at its time. Both sides are kept in the order of time, so that a
//! change costs the rows whose partner changes, and the logarithm of what is kept.

use std::collections::BTreeMap;
use std::ops::Bound;

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

/// How many bytes a time has; they compare as times do.
const TIME_BYTES: usize = size_of::<i64>();

/// A row behind its time.
pub(super) fn timed(time: i64, row: &[u8]) -> Row {
    [&time_bytes(time), row].concat()
}

fn time_bytes(time: i64) -> [u8; TIME_BYTES] {
    (time ^ i64::MIN).to_be_bytes()
}

/// Rows behind their time, each with how often it is there.
type Timed = BTreeMap<Row, i64>;

/// The rows of a key.
#[derive(Debug, Default)]
struct Sides {
    left: Timed,
    right: Timed,
    n_bytes: usize,
}

/// The first of some rows that is there.
fn first_there<'a>(mut rows: impl Iterator<Item = (&'a Row, &'a i64)>) -> Option<&'a Row> {
    rows.find(|(_, count)| **count > 0).map(|(row, _)| row)
}

/// Adds a row as often as `times` says; how often it was there and is.
fn add(rows: &mut Timed, n_bytes: &mut usize, row: &Row, times: i64) -> (i64, i64) {
    let before = rows.get(row).copied().unwrap_or(0);
    let after = before + times;
    match (before, after) {
        (_, 0) if before != 0 => {
            rows.remove(row);
            *n_bytes -= row.len() + ROW_BYTES;
        }
        (_, 0) => {}
        (0, _) => {
            rows.insert(row.clone(), after);
            *n_bytes += row.len() + ROW_BYTES;
        }
        _ => {
            rows.insert(row.clone(), after);
        }
    }
    (before, after)
}

impl Sides {
    /// A row of the left side comes or goes, with its partner.
    fn change_left(&mut self, row: &Row, diff: i64, nothing: &[u8], out: &mut Vec<(Row, isize)>) {
        add(&mut self.left, &mut self.n_bytes, row, diff);
        let moment = i64::from_be_bytes(std::array::from_fn(|idx| row[idx])) ^ i64::MIN;
        let next = moment.checked_add(1).map(time_bytes);
        let until = next.as_ref().map_or(Bound::Unbounded, |next| Bound::Excluded(next.as_slice()));
        let partner = first_there(self.right.range::<[u8], _>((Bound::Unbounded, until)).rev());
        out.push((pair(row, partner, nothing), diff as isize));
    }

    /// A row of the right side comes or goes: another one is the latest for those that come until the next.
    fn change_right(&mut self, row: &Row, diff: i64, nothing: &[u8], out: &mut Vec<(Row, isize)>) {
        let (before, after) = add(&mut self.right, &mut self.n_bytes, row, diff);
        if (before > 0) == (after > 0) {
            return;
        }
        let sign = if after > 0 { 1 } else { -1 };
        let behind = (Bound::Excluded(row.as_slice()), Bound::Unbounded);
        let next = first_there(self.right.range::<[u8], _>(behind));
        let until = match next {
            // It is the latest of its moment anyway.
            Some(next) if next[..TIME_BYTES] == row[..TIME_BYTES] => return,
            Some(next) => Bound::Excluded(&next[..TIME_BYTES]),
            None => Bound::Unbounded,
        };
        let other = first_there(
            self.right.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(row.as_slice()))).rev(),
        );
        for (left, count) in self.left.range::<[u8], _>((Bound::Included(&row[..TIME_BYTES]), until)) {
            out.push((pair(left, other, nothing), -sign * *count as isize));
            out.push((pair(left, Some(row), nothing), sign * *count as isize));
        }
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty() && self.right.is_empty()
    }
}

/// Both rows without their times.
fn pair(left: &Row, right: Option<&Row>, nothing: &[u8]) -> Row {
    [&left[TIME_BYTES..], right.map_or(nothing, |right| &right[TIME_BYTES..])].concat()
}

type Update = ((Row, Row), u64, isize);

/// What came in an epoch, on each side.
#[derive(Default)]
struct Changes {
    left: Vec<((Row, Row), isize)>,
    right: Vec<((Row, Row), isize)>,
}

/// All keys of a worker.
#[derive(Default)]
struct Keys {
    sides: RowMap<Sides>,
    n_rows: usize,
    n_bytes: usize,
    /// Stands for no row of the right side.
    nothing: Row,
}

impl Keys {
    fn epoch(&mut self, changes: Changes) -> Vec<(Row, isize)> {
        let mut out = Vec::new();
        // The right side first, so that what comes on the left meets its partner at once.
        for (mut changes, is_left) in [(changes.right, false), (changes.left, true)] {
            consolidate(&mut changes);
            for ((key, row), diff) in &changes {
                self.change(key, row, *diff as i64, is_left, &mut out);
            }
        }
        consolidate(&mut out);
        out
    }

    fn change(&mut self, key: &Row, row: &Row, diff: i64, is_left: bool, out: &mut Vec<(Row, isize)>) {
        let sides = match self.sides.get_mut(key) {
            Some(sides) => sides,
            None => {
                self.n_bytes += key.len() + ROW_BYTES;
                self.sides.entry(key.clone()).or_default()
            }
        };
        let size = |sides: &Sides| (sides.left.len() + sides.right.len(), sides.n_bytes);
        let before = size(sides);
        if is_left {
            sides.change_left(row, diff, &self.nothing, out);
        } else {
            sides.change_right(row, diff, &self.nothing, out);
        }
        let after = size(sides);
        self.n_rows = self.n_rows + after.0 - before.0;
        self.n_bytes = self.n_bytes + after.1 - before.1;
        if sides.is_empty() {
            self.sides.remove(key);
            self.n_bytes -= key.len() + ROW_BYTES;
        }
    }
}

/// Joins rows, [`timed`], by key. A row of the left side without a partner is followed by `nothing`.
pub(super) fn join<'scope>(
    left: Keyed<'scope, u64>,
    right: Keyed<'scope, u64>,
    nothing: Row,
    health: &Health,
) -> VecCollection<'scope, u64, Row, isize> {
    let health = health.clone();
    let mut keys = Keys { nothing, ..Keys::default() };
    let mut builder = OperatorBuilder::new("as of".to_owned(), left.inner.scope());
    let slot = health.slot(builder.operator_info().global_id);
    let by_key = || Exchange::new(|((key, _), ..): &Update| xxh3_64_with_seed(key, SEED));
    let mut left = builder.new_input(left.inner, by_key());
    let mut right = builder.new_input(right.inner, by_key());
    let (output, rows) = builder.new_output::<Vec<(Row, u64, isize)>>();
    let mut output = OutputBuilder::<u64, CapacityContainerBuilder<Vec<(Row, u64, isize)>>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut open = OpenEpochs::<(Capability<u64>, Changes)>::default();
        move |frontiers| {
            let mut output = output.activate();
            left.for_each(|capability, updates| {
                for (row, time, diff) in updates.drain(..) {
                    let at = || (capability.delayed(&time, 0), Changes::default());
                    open.at(time, at).1.left.push((row, diff));
                }
            });
            right.for_each(|capability, updates| {
                for (row, time, diff) in updates.drain(..) {
                    let at = || (capability.delayed(&time, 0), Changes::default());
                    open.at(time, at).1.right.push((row, diff));
                }
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, (capability, changes))) = open.pop_complete(frontier) {
                if health.is_stopped() {
                    keys = Keys::default();
                    continue;
                }
                let rows = keys.epoch(changes);
                output
                    .session(&capability)
                    .give_iterator(rows.into_iter().map(|(row, diff)| (row, epoch, diff)));
            }
            health.charge(slot, keys.n_rows, keys.n_bytes);
        }
    });
    rows.as_collection()
}
