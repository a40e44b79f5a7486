//! The live rows: those that the window of a row that may still come can reach.
//!
//! Every worker has its own watermark, the newest event time among the keys that it keeps minus the lateness. It is
//! that of the epochs before, so it does not depend on the order of rows within an epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use logdrive_schemas::Epoch;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::events::{Event, Key, Row, route};
use super::{Change, Rules, state};
use crate::detector::WorkerContext;
use crate::flow::{
    Changes, Cuts, OpenEpochs, StateWriter, TableChange, frontier, restored, shard_of, shards_of, worker_of,
};

pub(super) const PART: &str = "rows";

/// The table of live rows in checkpoints.
const TABLE: &str = "live";

/// How many changes beside the live rows may wait for a checkpoint.
const SLACK: usize = 8192;

/// How far ahead of the clock, beyond the lateness, a row may be: one hour in microseconds.
const AHEAD_US: i64 = 3_600_000_000;

/// The time at which restored rows enter the collection: before all epochs.
pub(super) const RESTORED: u64 = 0;

/// The live rows of one worker.
#[derive(Debug)]
struct Live {
    rules: Arc<Rules>,
    keys: HashMap<Key, BTreeSet<Row>>,
    /// The keys that have rows in each slice of event time. Rows expire by the slice.
    slices: BTreeMap<i64, HashSet<Key>>,
    n_rows: usize,
    /// The newest event time, if there was a row.
    newest: Option<i64>,
    unsaved: Unsaved,
}

/// What the checkpoint does not know yet.
#[derive(Debug, Default)]
struct Unsaved {
    /// Rows that came, or that a limit pushed out.
    touched: Vec<(Key, Row)>,
    /// Slices that have expired.
    expired: Vec<i64>,
    /// There is so much that it is better to begin anew.
    is_cleared: bool,
}

/// What an epoch did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    /// Rows that were too late, or too far ahead.
    n_late: usize,
    /// Rows that a limit pushed out.
    n_evicted: usize,
}

impl Live {
    fn new(rules: &Arc<Rules>) -> Self {
        let rules = Arc::clone(rules);
        Self {
            rules,
            keys: HashMap::new(),
            slices: BTreeMap::new(),
            n_rows: 0,
            newest: None,
            unsaved: Unsaved::default(),
        }
    }

    /// The watermark: older rows are late, and no window of a row at or after it may lack a row.
    fn bar(&self) -> i64 {
        self.newest.map_or(i64::MIN, |newest| newest.saturating_sub(self.rules.lateness))
    }

    fn slice_len(&self) -> i64 {
        (self.rules.window / 64).max(1)
    }

    fn insert(&mut self, key: &Key, row: Row) -> bool {
        let slice = row.at.div_euclid(self.slice_len());
        let is_new = self.keys.entry(Arc::clone(key)).or_default().insert(row);
        if is_new {
            self.n_rows += 1;
            self.slices.entry(slice).or_default().insert(Arc::clone(key));
        }
        is_new
    }

    /// Takes in the rows of an epoch; `changes` is what that does to the collection.
    fn epoch(&mut self, epoch: u64, events: Vec<Event>, changes: &mut Vec<Change<Row>>) -> Done {
        let (bar, mut newest, mut done) = (self.bar(), self.newest, Done::default());
        let clock = i64::try_from(epoch).unwrap_or(i64::MAX).saturating_mul(Epoch::UNIT_US);
        let latest = clock.saturating_add(self.rules.lateness).saturating_add(AHEAD_US);
        for Event { key, row } in events {
            if row.at < bar || row.at > latest {
                done.n_late += 1;
                continue;
            }
            newest = newest.max(Some(row.at));
            if self.insert(&key, row.clone()) {
                self.unsaved.touched.push((Arc::clone(&key), row.clone()));
                changes.push(((Arc::clone(&key), row), epoch, 1));
                done.n_evicted += self.limit_key(&key, epoch, changes);
            }
        }
        done.n_evicted += self.limit_all(epoch, changes);
        self.expire(bar, epoch, changes);
        self.newest = newest;
        // While nobody asks it must not grow beyond what it would take to begin anew.
        if self.unsaved.touched.len() + self.unsaved.expired.len() > 2 * self.n_rows + SLACK {
            self.unsaved = Unsaved { is_cleared: true, ..Unsaved::default() };
        }
        if self.unsaved.is_cleared {
            self.unsaved.touched.clear();
            self.unsaved.expired.clear();
        }
        done
    }

    /// Rows that no window needs. The windows of the whole step that the watermark is in are kept whole: which
    /// violation of a step comes first must not change while the step is open.
    fn expire(&mut self, bar: i64, epoch: u64, changes: &mut Vec<Change<Row>>) {
        let limit = bar.saturating_sub(self.rules.window).saturating_sub(self.rules.step());
        let len = self.slice_len();
        while let Some(slice) = self.slices.first_entry() {
            let end = slice.key().saturating_add(1).saturating_mul(len);
            if end > limit {
                break;
            }
            self.unsaved.expired.push(*slice.key());
            for key in slice.remove() {
                self.drop_before(&key, end, usize::MAX, epoch, changes);
            }
        }
    }

    /// Keeps a hot key within its limit.
    fn limit_key(&mut self, key: &Key, epoch: u64, changes: &mut Vec<Change<Row>>) -> usize {
        let n_rows = self.keys.get(key).map_or(0, BTreeSet::len);
        let surplus = n_rows.saturating_sub(self.rules.max_rows_per_key);
        if surplus > 0 { self.evict(key, i64::MAX, surplus, epoch, changes) } else { 0 }
    }

    /// Keeps the worker within its limit.
    fn limit_all(&mut self, epoch: u64, changes: &mut Vec<Change<Row>>) -> usize {
        let (mut n_evicted, len) = (0, self.slice_len());
        while self.n_rows > self.rules.max_rows {
            let Some(mut slice) = self.slices.first_entry() else { break };
            let (index, end) = (*slice.key(), slice.key().saturating_add(1).saturating_mul(len));
            let Some(key) = slice.get().iter().next().map(Arc::clone) else {
                slice.remove();
                continue;
            };
            slice.get_mut().remove(&key);
            let surplus = self.n_rows - self.rules.max_rows;
            let n_dropped = self.evict(&key, end, surplus, epoch, changes);
            n_evicted += n_dropped;
            if n_dropped == surplus {
                // Rows of this key may be left in the slice.
                self.slices.entry(index).or_default().insert(key);
            }
        }
        n_evicted
    }

    /// Drops rows that have not expired.
    fn evict(
        &mut self,
        key: &Key,
        end: i64,
        n_max: usize,
        epoch: u64,
        changes: &mut Vec<Change<Row>>,
    ) -> usize {
        let n_before = changes.len();
        let n_dropped = self.drop_before(key, end, n_max, epoch, changes);
        self.unsaved.touched.extend(changes[n_before..].iter().map(|(row, ..)| row.clone()));
        n_dropped
    }

    /// Drops at most `n_max` rows of a key before `end`, the oldest first.
    fn drop_before(
        &mut self,
        key: &Key,
        end: i64,
        n_max: usize,
        epoch: u64,
        changes: &mut Vec<Change<Row>>,
    ) -> usize {
        let Some(rows) = self.keys.get_mut(key) else { return 0 };
        let mut n_dropped = 0;
        while n_dropped < n_max && rows.first().is_some_and(|row| row.at < end) {
            let Some(row) = rows.pop_first() else { break };
            changes.push(((Arc::clone(key), row), epoch, -1));
            n_dropped += 1;
        }
        if rows.is_empty() {
            self.keys.remove(key);
        }
        self.n_rows -= n_dropped;
        n_dropped
    }

    /// What changed since it was asked last.
    fn changes(&mut self, cx: &WorkerContext) -> Changes {
        let mut writer = StateWriter::new(self.rules.fingerprint, cx);
        writer.u64(u64::from(self.newest.is_some()));
        writer.i64(self.newest.unwrap_or(0));
        writer.i64(self.slice_len());
        let mut table = TableChange::new(TABLE, &state::schema(), state::N_COLUMNS);
        let Unsaved { mut touched, expired, is_cleared } = std::mem::take(&mut self.unsaved);
        (table.cleared, table.dropped) = (is_cleared, expired);
        let mut removed = Vec::new();
        if is_cleared {
            let of_key = |(key, rows): (&Key, &BTreeSet<Row>)| {
                rows.iter().map(|row| (Arc::clone(key), row.clone())).collect::<Vec<_>>()
            };
            touched = self.keys.iter().flat_map(of_key).collect();
        } else {
            touched.sort_unstable();
            touched.dedup();
            let is_live = |(key, row): &mut (Key, Row)| self.keys.get(key).is_some_and(|r| r.contains(row));
            removed.extend(touched.extract_if(.., |row| !is_live(row)));
            let dropped: HashSet<i64> = table.dropped.iter().copied().collect();
            removed.retain(|(_, row)| !dropped.contains(&row.at.div_euclid(self.slice_len())));
        }
        for (rows, batches) in [(touched, &mut table.rows), (removed, &mut table.removed)] {
            batches.extend((!rows.is_empty()).then(|| state::to_batch(&rows, self.slice_len())));
        }
        Changes {
            fingerprint: self.rules.fingerprint,
            shards: shards_of(cx.index, cx.peers),
            state: writer.finish(),
            tables: if table.is_empty() { Vec::new() } else { vec![table] },
        }
    }

    /// Takes from the checkpoint what this worker is responsible for. Its watermark is its own if the workers are as
    /// many as they were, else the highest.
    fn restore(&mut self, cx: &WorkerContext, changes: &mut Vec<Change<Row>>) {
        let (operator, fingerprint) = (self.rules.operator(PART), self.rules.fingerprint);
        for (worker, peers, mut state) in restored(&cx.checkpoint.restored(&operator), fingerprint) {
            let (Some(any), Some(newest), Some(slice)) = (state.u64(), state.i64(), state.i64()) else {
                continue;
            };
            // The window has changed, and with it what leaves together.
            self.unsaved.is_cleared |= slice != self.slice_len();
            if any == 1 && (peers != cx.peers as u64 || worker == cx.index as u64) {
                self.newest = self.newest.max(Some(newest));
            }
        }
        let shards = shards_of(cx.index, cx.peers);
        for batch in cx.checkpoint.restored_rows(&operator, fingerprint, TABLE, shards) {
            for (key, row) in state::from_batch(&batch) {
                if self.insert(&key, row.clone()) {
                    changes.push(((key, row), RESTORED, 1));
                }
            }
        }
    }
}

/// Whether this worker keeps `key`.
pub(super) fn is_mine(key: &str, cx: &WorkerContext) -> bool {
    worker_of(shard_of(route(key)), cx.peers) == cx.index
}

/// An epoch that is not complete.
struct Open {
    changes_at: Capability<u64>,
    bar_at: Capability<u64>,
    events: Vec<Event>,
}

/// The changes of the live rows, and the watermark that each epoch was judged by.
pub(super) fn attach<'scope>(
    events: StreamVec<'scope, u64, Event>,
    rules: &Arc<Rules>,
    cx: &WorkerContext,
) -> (StreamVec<'scope, u64, Change<Row>>, StreamVec<'scope, u64, i64>) {
    let operator = rules.operator(PART);
    let mut live = Live::new(rules);
    let mut changes = Vec::new();
    live.restore(cx, &mut changes);
    let mut cuts = Cuts::new(operator.clone(), cx);
    let cx = cx.clone();

    let mut builder = OperatorBuilder::new(operator, events.scope());
    let peers = cx.peers;
    let worker = move |event: &Event| worker_of(shard_of(route(&event.key)), peers) as u64;
    let mut input = builder.new_input(events, Exchange::new(worker));
    let (changes_out, changes_stream) = builder.new_output::<Vec<Change<Row>>>();
    let (bars_out, bars) = builder.new_output::<Vec<i64>>();
    let mut changes_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<Change<Row>>>>::from(changes_out);
    let mut bars_out = OutputBuilder::<_, CapacityContainerBuilder<Vec<i64>>>::from(bars_out);
    builder.build(move |mut capabilities| {
        capabilities.truncate(1);
        let mut restored_at = capabilities.pop();
        let mut open = OpenEpochs::<Open>::default();
        move |frontiers| {
            let mut changes_out = changes_out.activate();
            let mut bars_out = bars_out.activate();
            if let Some(capability) = restored_at.take() {
                changes_out.session(&capability).give_iterator(changes.drain(..));
            }
            input.for_each(|capability, events| {
                let open = open.at(*capability.time(), || Open {
                    changes_at: capability.retain(0),
                    bar_at: capability.retain(1),
                    events: Vec::new(),
                });
                open.events.append(events);
            });
            let frontier = frontier(frontiers);
            while let Some((epoch, of_epoch)) = open.pop_complete(frontier) {
                cuts.pass_changes(epoch, |_| live.changes(&cx));
                let Open { changes_at, bar_at, events } = of_epoch;
                bars_out.session(&bar_at).give(live.bar());
                let done = live.epoch(epoch, events, &mut changes);
                changes_out.session(&changes_at).give_iterator(changes.drain(..));
                let name = &live.rules.name;
                if done.n_late > 0 {
                    cx.counters.late(name, done.n_late);
                }
                if done.n_evicted > 0 {
                    cx.counters.evicted(name, done.n_evicted);
                }
                cx.counters.state_rows(name, cx.index, live.n_rows);
            }
            if let Some(frontier) = frontier {
                cuts.pass_changes(frontier, |_| live.changes(&cx));
            }
        }
    });
    (changes_stream, bars)
}
