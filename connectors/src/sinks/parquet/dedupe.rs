//! What the lake already holds, so that rows which a source replays are written once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::BooleanArray;
use logdrive_schemas::{Batch, Partition};

use super::commit::{Identity, Record};

/// Partitions whose mark is remembered; beyond, the one that was not written for longest is forgotten. Only what is
/// not yet acknowledged is ever replayed, so an old mark is not needed.
const MARKS_MAX: usize = 65_536;
/// Messages without ordered offsets that are remembered, oldest forgotten first.
const IDS_MAX: usize = 65_536;

/// What the lake already holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    marks: HashMap<String, HashMap<Partition, Mark>>,
    n_marks: usize,
    ids: HashSet<Identity>,
    oldest_first: VecDeque<Identity>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    offset: u64,
    commit: u64,
}

impl Seen {
    /// Which rows are new; `None` if all are.
    pub(super) fn fresh(&self, batch: &Batch) -> Option<BooleanArray> {
        let origin = batch.origin();
        let offsets = batch.offsets();
        if origin.ordered {
            let mark = self.marks.get(&*origin.source)?.get(&origin.partition)?.offset;
            let any_seen = offsets.values().iter().any(|offset| *offset <= mark);
            return any_seen.then(|| offsets.values().iter().map(|offset| Some(*offset > mark)).collect());
        }
        if self.ids.is_empty() {
            return None;
        }
        let mut id = Identity(origin.source.to_string(), origin.partition, 0);
        let mut is_fresh = |offset: &u64| {
            id.2 = *offset;
            !self.ids.contains(&id)
        };
        let fresh: BooleanArray = offsets.values().iter().map(|offset| Some(is_fresh(offset))).collect();
        (fresh.true_count() < fresh.len()).then_some(fresh)
    }

    /// Takes note of a commit. Commits are applied in ascending order, from a snapshot on.
    pub(super) fn apply(&mut self, record: &Record) {
        self.add(record.commit, &record.marks, &record.ids);
    }

    pub(super) fn add(&mut self, commit: u64, marks: &[Identity], ids: &[Identity]) {
        for Identity(source, partition, offset) in marks {
            if !self.marks.contains_key(source) {
                self.marks.insert(source.clone(), HashMap::new());
            }
            let of_source = self.marks.get_mut(source).expect("inserted above");
            let mark = of_source.entry(*partition).or_insert_with(|| {
                self.n_marks += 1;
                Mark { offset: 0, commit }
            });
            *mark = Mark { offset: mark.offset.max(*offset), commit };
        }
        for id in ids {
            if self.ids.insert(id.clone()) {
                self.oldest_first.push_back(id.clone());
            }
        }
        // Those of this commit are kept in any case: they may be replayed.
        while self.oldest_first.len() > IDS_MAX.max(ids.len()) {
            if let Some(id) = self.oldest_first.pop_front() {
                self.ids.remove(&id);
            }
        }
        self.forget_marks(commit);
    }

    /// Forgets the older half when there are too many.
    fn forget_marks(&mut self, commit: u64) {
        if self.n_marks <= MARKS_MAX {
            return;
        }
        let mut commits: Vec<u64> =
            self.marks.values().flat_map(|of_source| of_source.values().map(|mark| mark.commit)).collect();
        let middle = commits.len() / 2;
        let (_, cut, _) = commits.select_nth_unstable(middle);
        let cut = (*cut).min(commit.saturating_sub(1));
        for of_source in self.marks.values_mut() {
            of_source.retain(|_, mark| mark.commit > cut);
        }
        self.marks.retain(|_, of_source| !of_source.is_empty());
        self.n_marks = self.marks.values().map(HashMap::len).sum();
    }

    /// All marks and identities.
    pub(super) fn snapshot(&self) -> (Vec<Identity>, Vec<Identity>) {
        let marks = self.marks.iter().flat_map(|(source, of_source)| {
            of_source.iter().map(|(partition, mark)| Identity(source.clone(), *partition, mark.offset))
        });
        let mut marks: Vec<Identity> = marks.collect();
        marks.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        (marks, self.oldest_first.iter().cloned().collect())
    }
}

/// What is written but not committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    marks: HashMap<(Arc<str>, Partition), u64>,
    pub(super) ids: Vec<Identity>,
}

impl Pending {
    pub(super) fn note(&mut self, batch: &Batch) {
        let origin = batch.origin();
        let offsets = batch.offsets().values();
        if origin.ordered {
            let highest = offsets.iter().copied().max().unwrap_or(0);
            let mark = self.marks.entry((Arc::clone(&origin.source), origin.partition)).or_insert(highest);
            *mark = highest.max(*mark);
        } else {
            let id = |offset: &u64| Identity(origin.source.to_string(), origin.partition, *offset);
            self.ids.extend(offsets.iter().map(id));
        }
    }

    pub(super) fn marks(&self) -> Vec<Identity> {
        let mut marks: Vec<Identity> = self
            .marks
            .iter()
            .map(|((source, partition), offset)| Identity(source.to_string(), *partition, *offset))
            .collect();
        marks.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_the_newest_stays() {
        let mut seen = Seen::default();
        let id = |n: u64| Identity("s".into(), Partition(n), n);
        for commit in 0..200_u64 {
            let new: Vec<Identity> = (0..1_000).map(|n| id(commit * 1_000 + n)).collect();
            seen.add(commit, &new, &new);
            assert!(seen.n_marks <= MARKS_MAX + 1_000 && seen.ids.len() <= IDS_MAX);
            assert!(seen.marks["s"].contains_key(&Partition(commit * 1_000)));
        }
        assert!(seen.ids.contains(&id(199_999)) && !seen.ids.contains(&id(0)));
        let (marks, ids) = seen.snapshot();
        assert_eq!((marks.len(), ids.len()), (seen.n_marks, IDS_MAX));
    }
}
