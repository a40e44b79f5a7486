//! The rows of a leaf that are in the view or come in later, and what changed of them since the last cut.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::watermark;
use super::codec::{ROW_BYTES, Row, RowMap};

/// When a row leaves that never does.
pub(super) const NEVER: i64 = i64::MAX;

/// Rows that leave at an epoch leave the checkpoint in slices of so many epochs: what is dropped is listed there.
const SLICE: i64 = 1_000;

/// About what rows that come and leave together cost beside themselves.
const PLACE_BYTES: usize = 96;

/// A change of a leaf's rows.
pub(super) type Update = (Row, u64, isize);

/// How the rows of a leaf leave by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    Never,
    /// When `now()` passes the epoch that they are filed under.
    AtEpoch,
    /// When the watermark passes the start of the window that they are filed under, and this much more.
    BehindWatermark(i64),
}

impl Leaves {
    /// The partition of the checkpoint's table for rows that are filed under `end`.
    pub(super) fn partition(self, end: i64) -> i64 {
        match self {
            Self::Never => 0,
            Self::AtEpoch => end.div_euclid(SLICE),
            Self::BehindWatermark(_) => end,
        }
    }
}

/// From which epoch on rows are in, 0 if they are; and what they are filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) from: u64,
    pub(super) end: i64,
}

/// The rows of a place.
#[derive(Debug)]
enum Bag {
    /// Rows that may be taken back: how often each is there. Below zero if it was taken back before it came.
    Counted(RowMap<i64>),
    /// Others.
    Listed(Vec<Row>),
}

impl Bag {
    fn is_empty(&self) -> bool {
        match self {
            Self::Counted(rows) => rows.is_empty(),
            Self::Listed(rows) => rows.is_empty(),
        }
    }

    fn into_rows(self) -> Box<dyn Iterator<Item = (Row, i64)>> {
        match self {
            Self::Counted(rows) => Box::new(rows.into_iter()),
            Self::Listed(rows) => Box::new(rows.into_iter().map(|row| (row, 1))),
        }
    }
}

/// What changed since the last cut; in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Partitions whose rows have left.
    pub(super) dropped: Vec<i64>,
    /// Rows that are not there any more.
    pub(super) removed: Vec<(Place, Row)>,
    /// How often other rows are there now.
    pub(super) rows: Vec<(Place, Row, i64)>,
}

/// The rows of one leaf on one worker.
#[derive(Debug)]
pub(super) struct Kept {
    leaves: Leaves,
    /// Whether rows may be taken back. If not, a row that never leaves need not be remembered once it is saved.
    is_counted: bool,
    by_place: BTreeMap<Place, Bag>,
    /// Rows whose count has changed, with the one that the checkpoint has.
    touched: BTreeMap<Place, RowMap<i64>>,
    /// Rows that came, where they are not counted.
    added: Vec<(Place, Row)>,
    /// Partitions of which the checkpoint has rows.
    saved: BTreeSet<i64>,
    /// The rows of this partition and those before it have left.
    gone: i64,
    n_rows: usize,
    n_bytes: usize,
    n_unsaved_bytes: usize,
}

impl Kept {
    pub(super) fn new(leaves: Leaves, is_counted: bool) -> Self {
        Self {
            leaves,
            is_counted,
            by_place: BTreeMap::new(),
            touched: BTreeMap::new(),
            added: Vec::new(),
            saved: BTreeSet::new(),
            gone: i64::MIN,
            n_rows: 0,
            n_bytes: 0,
            n_unsaved_bytes: 0,
        }
    }

    /// Takes in a row that came at `epoch`.
    pub(super) fn take(&mut self, epoch: u64, place: Place, row: Row, diff: i64, out: &mut Vec<Update>) {
        if place.from <= epoch {
            out.push((row.clone(), epoch, diff as isize));
            self.change(Place { from: 0, ..place }, row, diff);
        } else {
            self.change(place, row, diff);
        }
    }

    /// What comes in and leaves up to `epoch`, at the epoch at which it does, but none before `floor`.
    pub(super) fn pass_time(&mut self, epoch: u64, floor: u64, out: &mut Vec<Update>) {
        let waiting = Place { from: 1, end: i64::MIN }..=Place { from: epoch, end: i64::MAX };
        while epoch > 0
            && let Some(place) = self.by_place.range(waiting.clone()).next().map(|(place, _)| *place)
        {
            for (row, count) in self.take_out(place) {
                out.push((row.clone(), place.from.max(floor), count as isize));
                if self.is_counted {
                    self.touch(place, &row, count);
                    self.change(Place { from: 0, ..place }, row, count);
                } else {
                    // The checkpoint has it with the epoch at which it came in, or will have.
                    self.put(Place { from: 0, ..place }, row, count);
                }
            }
        }
        if self.leaves == Leaves::AtEpoch {
            let end = i64::try_from(epoch).unwrap_or(NEVER - 1);
            self.gone = self.gone.max(self.leaves.partition(end.saturating_add(1)) - 1);
            self.leave(end, |end| end.cast_unsigned().max(floor), out);
        }
    }

    /// What leaves since event time has come to `bar`, at `epoch`.
    pub(super) fn pass_watermark(&mut self, epoch: u64, bar: i64, out: &mut Vec<Update>) {
        // At the end of all input nothing leaves: the result stays.
        if let Leaves::BehindWatermark(more) = self.leaves
            && bar != watermark::END
        {
            let end = bar.saturating_sub(more);
            self.gone = self.gone.max(end);
            self.leave(end, |_| epoch, out);
        }
    }

    /// Lets go of rows that are filed under `last` or before; `at` says the epoch at which they leave. They leave the
    /// checkpoint with their partition.
    fn leave(&mut self, last: i64, at: impl Fn(i64) -> u64, out: &mut Vec<Update>) {
        let is_over = |place: &Place| place.from == 0 && place.end <= last;
        while let Some(place) = self.by_place.keys().next().copied().filter(is_over) {
            let left = self.take_out(place).into_iter();
            out.extend(left.map(|(row, count)| (row, at(place.end), -count as isize)));
        }
    }

    /// Brings back a row of the checkpoint, of which epochs up to `passed` are part. True if it is in the view.
    pub(super) fn restore(&mut self, place: Place, row: Row, count: i64, passed: u64) -> bool {
        self.saved.insert(self.leaves.partition(place.end));
        let has_left = self.leaves == Leaves::AtEpoch && place.end.cast_unsigned() <= passed;
        if has_left {
            return false;
        }
        let is_in = place.from <= passed;
        self.put(if is_in { Place { from: 0, ..place } } else { place }, row, count);
        is_in
    }

    /// What changed since it was asked last.
    pub(super) fn take_changed(&mut self) -> Changed {
        let later = self.saved.split_off(&self.gone.saturating_add(1));
        let dropped = std::mem::replace(&mut self.saved, later).into_iter().collect();
        let mut changed = Changed { dropped, ..Changed::default() };
        for (place, rows) in std::mem::take(&mut self.touched) {
            let partition = self.leaves.partition(place.end);
            if partition <= self.gone {
                continue;
            }
            let bag = self.by_place.get(&place);
            for (row, before) in rows {
                let now = match bag {
                    Some(Bag::Counted(rows)) => rows.get(&row).copied().unwrap_or(0),
                    _ => 0,
                };
                if now == 0 && before != 0 {
                    changed.removed.push((place, row));
                } else if now != before {
                    self.saved.insert(partition);
                    changed.rows.push((place, row, now));
                }
            }
        }
        for (place, row) in std::mem::take(&mut self.added) {
            let partition = self.leaves.partition(place.end);
            if partition > self.gone {
                self.saved.insert(partition);
                changed.rows.push((place, row, 1));
            }
        }
        self.n_unsaved_bytes = 0;
        self.shrink();
        changed
    }

    /// Gives back memory that many rows took once most of them are gone.
    fn shrink(&mut self) {
        for bag in self.by_place.values_mut() {
            if let Bag::Counted(rows) = bag
                && rows.capacity() > 4 * rows.len() + 1024
            {
                rows.shrink_to_fit();
            }
        }
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.leaves, self.is_counted);
    }

    pub(super) fn leaves(&self) -> Leaves {
        self.leaves
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// About how many bytes it takes.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes + self.n_unsaved_bytes
    }

    fn change(&mut self, place: Place, row: Row, diff: i64) {
        if !self.is_counted {
            self.n_unsaved_bytes += bytes_of(&row);
            if self.is_for_ever(place) {
                return self.added.push((place, row));
            }
            self.added.push((place, row.clone()));
            return self.put(place, row, diff);
        }
        let before = match self.by_place.get(&place) {
            Some(Bag::Counted(rows)) => rows.get(&row).copied().unwrap_or(0),
            _ => 0,
        };
        self.touch(place, &row, before);
        self.put(place, row, diff);
    }

    /// Remembers the count of a row that is about to change, unless it has changed already.
    fn touch(&mut self, place: Place, row: &Row, before: i64) {
        let rows = self.touched.entry(place).or_default();
        if !rows.contains_key(row) {
            self.n_unsaved_bytes += bytes_of(row);
            rows.insert(row.clone(), before);
        }
    }

    fn put(&mut self, place: Place, row: Row, diff: i64) {
        if self.is_for_ever(place) {
            return;
        }
        let n_row_bytes = bytes_of(&row);
        let bag = self.by_place.entry(place).or_insert_with(|| {
            self.n_bytes += PLACE_BYTES;
            if self.is_counted { Bag::Counted(RowMap::default()) } else { Bag::Listed(Vec::with_capacity(1)) }
        });
        match bag {
            Bag::Listed(rows) => {
                rows.push(row);
                (self.n_rows, self.n_bytes) = (self.n_rows + 1, self.n_bytes + n_row_bytes);
            }
            Bag::Counted(rows) => match rows.entry(row) {
                Entry::Occupied(mut entry) => {
                    *entry.get_mut() += diff;
                    if *entry.get() == 0 {
                        entry.remove();
                        (self.n_rows, self.n_bytes) = (self.n_rows - 1, self.n_bytes - n_row_bytes);
                    }
                }
                Entry::Vacant(entry) => {
                    entry.insert(diff);
                    (self.n_rows, self.n_bytes) = (self.n_rows + 1, self.n_bytes + n_row_bytes);
                }
            },
        }
        if bag.is_empty() {
            self.by_place.remove(&place);
            self.n_bytes -= PLACE_BYTES;
        }
    }

    /// Whether nobody asks for the rows of a place again.
    fn is_for_ever(&self, place: Place) -> bool {
        !self.is_counted && place.from == 0 && self.leaves == Leaves::Never
    }

    /// The rows of a place, which it no longer has.
    fn take_out(&mut self, place: Place) -> Vec<(Row, i64)> {
        let Some(bag) = self.by_place.remove(&place) else { return Vec::new() };
        let rows: Vec<(Row, i64)> = bag.into_rows().collect();
        self.n_rows -= rows.len();
        self.n_bytes -= PLACE_BYTES + rows.iter().map(|(row, _)| bytes_of(row)).sum::<usize>();
        rows
    }
}

fn bytes_of(row: &Row) -> usize {
    row.len() + ROW_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN: Place = Place { from: 0, end: NEVER };

    fn row(n: u32) -> Row {
        n.to_be_bytes().to_vec()
    }

    fn take(kept: &mut Kept, place: Place, n: u32, diff: i64) {
        kept.take(10, place, row(n), diff, &mut Vec::new());
    }

    #[test]
    fn what_changed_is_told_and_what_came_and_went_is_not() {
        let mut kept = Kept::new(Leaves::Never, true);
        (0..1_000).for_each(|n| take(&mut kept, IN, n, 1));
        assert_eq!(kept.take_changed().rows.len(), 1_000);
        take(&mut kept, IN, 1, 1);
        take(&mut kept, IN, 2, -1);
        take(&mut kept, IN, 3, -1);
        take(&mut kept, IN, 3, 1);
        take(&mut kept, IN, 7_000, 1);
        take(&mut kept, IN, 7_000, -1);
        let expected = Changed { dropped: vec![], removed: vec![(IN, row(2))], rows: vec![(IN, row(1), 2)] };
        assert_eq!(kept.take_changed(), expected);
        assert_eq!(kept.take_changed(), Changed::default());
    }

    #[test]
    fn what_is_taken_back_costs_nothing() {
        let mut kept = Kept::new(Leaves::Never, true);
        (0..1_000).for_each(|n| take(&mut kept, IN, n, 1));
        (0..1_000).for_each(|n| take(&mut kept, IN, n, -1));
        assert_eq!(kept.take_changed(), Changed::default());
        assert_eq!((kept.n_rows(), kept.n_bytes()), (0, 0));
        assert!(kept.by_place.is_empty());
    }

    #[test]
    fn rows_that_only_come_are_not_remembered_once_they_are_saved() {
        let mut kept = Kept::new(Leaves::Never, false);
        (0..1_000).for_each(|n| take(&mut kept, IN, n % 10, 1));
        assert!(kept.n_bytes() >= 64_000);
        assert_eq!(kept.take_changed().rows.len(), 1_000);
        assert_eq!((kept.n_rows(), kept.n_bytes()), (0, 0));
    }

    #[test]
    fn slices_of_time_leave_the_checkpoint_as_a_whole() {
        for is_counted in [false, true] {
            let mut kept = Kept::new(Leaves::AtEpoch, is_counted);
            let mut out = Vec::new();
            (0..4_000).for_each(|n| take(&mut kept, Place { from: 0, end: 1_000 + i64::from(n) }, n, 1));
            // A row that comes in later.
            kept.take(10, Place { from: 2_500, end: 9_000 }, row(1), 1, &mut out);
            assert!(out.is_empty());
            assert_eq!(kept.take_changed().rows.len(), 4_001);
            kept.pass_time(2_999, 0, &mut out);
            assert_eq!(out.iter().map(|(.., diff)| diff).sum::<isize>(), 1 - 2_000);
            let changed = kept.take_changed();
            assert_eq!(changed.dropped, [1, 2]);
            let moved = usize::from(is_counted);
            assert_eq!((changed.removed.len(), changed.rows.len()), (moved, moved));
            assert_eq!(kept.n_rows(), 2_001);
        }
    }
}
