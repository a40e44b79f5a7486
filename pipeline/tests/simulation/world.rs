//! The world outside of the process: what is stored there for good, and how often something goes wrong. It lives on when
//! the process crashes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use logdrive_connectors::ConnectorError;
use logdrive_schemas::{Partition, Position};

use crate::far::{Id, Kind};
use crate::log::{Fate, fate};
use crate::message::Dice;

pub(crate) const N_PARTITIONS: u64 = 3;
pub(crate) const N_MESSAGES: u64 = 700;
pub(crate) const N_KEYS: u64 = 7;

/// What is outside.
pub(crate) struct World {
    /// Rows that the pipeline knows to be on its own disk count as arrived, and cannot be seen from here.
    pub(crate) may_spill: bool,
    pub(crate) far_ends: Vec<Kind>,
    pub(crate) is_bad: AtomicBool,
    pub(crate) n_faults: AtomicU64,
    stored: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    rows: BTreeMap<Kind, BTreeMap<Id, Vec<RecordBatch>>>,
    /// The highest offset of each source and partition.
    positions: BTreeMap<(Kind, String, u64), u64>,
    committed: BTreeMap<u64, u64>,
    wrong: Vec<String>,
}

impl World {
    pub(crate) fn new(may_spill: bool, far_ends: Vec<Kind>) -> Self {
        let (is_bad, n_faults) = (AtomicBool::new(true), AtomicU64::new(0));
        Self { may_spill, far_ends, is_bad, n_faults, stored: Mutex::default() }
    }

    /// Fails once in so many times: the line breaks, the other side asks for time, or, the rarest, the process is over.
    pub(crate) fn may_fail(&self, dice: &mut Dice, one_in: u64) -> Result<(), ConnectorError> {
        if !self.is_bad.load(Ordering::Acquire) || !dice.one_in(one_in) {
            return Ok(());
        }
        self.n_faults.fetch_add(1, Ordering::Relaxed);
        Err(match dice.range(0, 8) {
            0 => ConnectorError::storage("simulation", io::Error::other("the process crashes here")),
            1 => ConnectorError::disconnected("simulation", "broken"),
            _ => ConnectorError::Busy {
                endpoint: "simulation".into(),
                after: Some(Duration::from_millis(dice.range(0, 20))),
            },
        })
    }

    /// Stores rows for good, all or none.
    pub(crate) fn store(&self, kind: Kind, rows: Vec<(Id, RecordBatch)>) {
        let mut stored = self.stored.lock().unwrap();
        for (id, row) in rows {
            let position = stored.positions.entry((kind, id.0.clone(), id.1)).or_default();
            *position = id.2.max(*position);
            stored.rows.entry(kind).or_default().entry(id).or_default().push(row);
        }
    }

    pub(crate) fn position(&self, kind: Kind, source: &str, partition: Partition) -> Option<u64> {
        let stored = self.stored.lock().unwrap();
        stored.positions.get(&(kind, source.to_owned(), partition.0)).copied()
    }

    /// The pipeline says that everything before `upto` has arrived, after it said so of everything up to `before`.
    pub(crate) fn committed(&self, upto: Position, before: Option<u64>) {
        let mut stored = self.stored.lock().unwrap();
        stored.check("committed", upto, self);
        if before.is_some_and(|before| upto.offset < before) {
            stored.wrong.push(format!("{upto:?} was committed, and {before:?} before it"));
        }
        let committed = stored.committed.entry(upto.partition.0).or_default();
        *committed = upto.offset.max(*committed);
    }

    /// The pipeline goes on from here: what is before will not come again.
    pub(crate) fn started_at(&self, from: Position) {
        self.stored.lock().unwrap().check("begun behind", from, self);
    }

    /// Everything must have arrived, and everything that does not is reported.
    pub(crate) fn settle(&self) -> Vec<String> {
        let mut stored = self.stored.lock().unwrap();
        for partition in 0..N_PARTITIONS {
            let end = Position { partition: Partition(partition), offset: N_MESSAGES };
            let committed = stored.committed.get(&partition).copied();
            if committed != Some(N_MESSAGES) {
                stored.wrong.push(format!("partition {partition}: at the end {committed:?} is committed"));
            }
            stored.check_all("ended", end, &self.far_ends);
        }
        for kind in [Kind::Exact, Kind::Changes] {
            let twice: Vec<_> =
                stored.rows.get(&kind).into_iter().flatten().filter(|(_, rows)| rows.len() > 1).collect();
            let twice = twice.first().map(|(id, _)| format!("{kind:?}: {id:?} is there twice"));
            stored.wrong.extend(twice);
        }
        if self.far_ends.contains(&Kind::Changes) {
            let (found, expected) = (stored.totals(), expected_totals());
            if found != expected {
                stored.wrong.push(format!("the changes come to {found:?} instead of {expected:?}"));
            }
        }
        std::mem::take(&mut stored.wrong)
    }
}

impl Stored {
    fn check(&mut self, what: &str, upto: Position, world: &World) {
        if !world.may_spill {
            self.check_all(what, upto, &world.far_ends);
        }
    }

    /// Every message before `upto` must be where it belongs.
    fn check_all(&mut self, what: &str, upto: Position, far_ends: &[Kind]) {
        let Partition(partition) = upto.partition;
        for kind in far_ends {
            let none = BTreeMap::new();
            let rows = self.rows.get(kind).unwrap_or(&none);
            let is_there = |offset: u64| rows.contains_key(&("log".to_owned(), partition, offset));
            let missing = (0..upto.offset)
                .find(|offset| belongs(*kind, fate(partition, *offset)) && !is_there(*offset));
            let missing = missing.map(|offset| {
                format!("{what} {}, but {offset} of partition {partition} is not in {kind:?}", upto.offset)
            });
            self.wrong.extend(missing);
        }
    }

    /// What all changes come to: how often each row of the view is there.
    fn totals(&self) -> BTreeMap<(String, i64, i64), i64> {
        let mut totals = BTreeMap::new();
        for row in self.rows.get(&Kind::Changes).into_iter().flat_map(BTreeMap::values).flatten() {
            let text = |name: &str| row.column_by_name(name).unwrap().as_string_view().value(0).to_owned();
            let number = |name: &str| row.column_by_name(name).unwrap().as_primitive::<Int64Type>().value(0);
            let sign = if text("_change") == "insert" { 1 } else { -1 };
            *totals.entry((text("key"), number("c"), number("s"))).or_default() += sign;
        }
        totals.retain(|_, n| *n != 0);
        totals
    }
}

/// Whether a message with this fate is to be in a far end.
fn belongs(kind: Kind, fate: Fate) -> bool {
    match kind {
        Kind::Exact => fate == Fate::Delivered,
        Kind::Plain => fate != Fate::Malformed,
        Kind::Rejects => fate != Fate::Delivered,
        // Rows of a view are no messages.
        Kind::Changes => false,
    }
}

/// How many messages each key has, and the sum of their numbers.
fn expected_totals() -> BTreeMap<(String, i64, i64), i64> {
    let mut totals: BTreeMap<u64, (i64, i64)> = BTreeMap::new();
    for partition in 0..N_PARTITIONS {
        for offset in (0..N_MESSAGES).filter(|offset| fate(partition, *offset) != Fate::Malformed) {
            let (count, sum) = totals.entry(offset % N_KEYS).or_default();
            (*count, *sum) = (*count + 1, *sum + partition.cast_signed());
        }
    }
    totals.into_iter().map(|(key, (count, sum))| ((format!("k{key}"), count, sum), 1)).collect()
}
