//! Open sessions: for each key the spans of time in which its rows follow each other, with the state of each.
//!
//! Rows come as parts of one moment and key. A part joins the spans that it is near enough to, which may make one
//! session of two; what that changes is told like any other change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::{Result, internal_err};
use logdrive_operators::flow::n_bytes;

use super::container::tidy;
use super::grouping::Grouping;
use super::table::TableLayout;

/// How many outdated rows beside the sessions may pile up before they are dropped.
const SLACK: usize = 8192;

type Key = Box<[u8]>;

/// A session.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: i64,
    /// The time of the last row.
    last: i64,
    /// Where its row is: which batch, which row.
    place: (usize, usize),
    /// Whether the checkpoint has it.
    is_saved: bool,
}

/// Rows of sessions: those of a [`TableLayout`], the pane being the start.
#[derive(Debug)]
pub(super) struct SessionRows {
    pub(super) rows: RecordBatch,
    /// When each session ends.
    pub(super) ends: Vec<i64>,
}

/// What parts change.
#[derive(Debug)]
pub(super) struct SessionChange {
    pub(super) old: Option<SessionRows>,
    pub(super) new: SessionRows,
}

/// The open sessions of the keys of one worker.
pub(super) struct Sessions {
    gap: i64,
    /// Compares keys; `None` if all rows have the same one.
    converter: Option<RowConverter>,
    keys: HashMap<Key, Vec<Span>>,
    /// Keys that had a session whose last row was in a slice of time; they may have later ones by now.
    slices: BTreeMap<i64, Vec<Key>>,
    batches: Vec<RecordBatch>,
    /// How many rows the batches have, with those that are outdated.
    n_stored: usize,
    n_sessions: usize,
    n_bytes: usize,
    unsaved: Unsaved,
}

/// What the checkpoint does not know yet.
#[derive(Debug, Default)]
struct Unsaved {
    /// New sessions by key and start; some are part of others by now.
    fresh: Vec<(Key, i64)>,
    /// Start and key of sessions that it has and that are no more.
    gone: Vec<RecordBatch>,
    n_gone: usize,
    /// There is so much that it is better to begin anew.
    is_cleared: bool,
}

/// What changed since it was asked last; sessions that are gone by start and key.
#[derive(Debug)]
pub(super) struct SessionState {
    pub(super) is_cleared: bool,
    pub(super) gone: Vec<RecordBatch>,
    /// With one more column, when each ends.
    pub(super) rows: Option<RecordBatch>,
}

impl Sessions {
    pub(super) fn new(gap: i64, layout: &TableLayout) -> Result<Self> {
        let keys: Vec<SortField> = layout.key_types().skip(1).map(SortField::new).collect();
        Ok(Self {
            gap,
            converter: (!keys.is_empty()).then(|| RowConverter::new(keys)).transpose()?,
            keys: HashMap::new(),
            slices: BTreeMap::new(),
            batches: Vec::new(),
            n_stored: 0,
            n_sessions: 0,
            n_bytes: 0,
            unsaved: Unsaved::default(),
        })
    }

    /// Adds parts.
    pub(super) fn apply(
        &mut self,
        parts: &[RecordBatch],
        layout: &TableLayout,
        grouping: &mut Grouping,
    ) -> Result<Option<SessionChange>> {
        let Some(first) = parts.first() else { return Ok(None) };
        let added = concat_batches(first.schema_ref(), parts)?;
        let times = added.column(0).as_primitive::<Int64Type>();
        let mut by_key: HashMap<Key, Vec<(i64, usize)>> = HashMap::new();
        let keys = self.key_rows(&added.columns()[1..layout.n_keys()])?;
        for (row, at) in times.values().iter().enumerate() {
            by_key.entry(key_of(keys.as_ref(), row)).or_default().push((*at, row));
        }
        let mut merge = Merge { of_added: vec![0; added.num_rows()], ..Merge::default() };
        let mut by_key: Vec<_> = by_key.into_iter().collect();
        by_key.sort_unstable();
        for (key, rows) in by_key {
            let spans = self.keys.remove(&key).unwrap_or_default();
            let left = merge.key(&key, spans, rows, self.gap);
            if !left.is_empty() {
                self.keys.insert(key, left);
            }
        }
        let old = self.gather(&merge.old)?;
        let ids = |ids: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(ids)) };
        grouping.merge(added.columns(), Some(ids(merge.of_added)))?;
        if let Some(old) = &old {
            let of_old = merge.of_old.clone();
            grouping.merge(&old.columns()[..layout.n_part()], Some(ids(of_old)))?;
        }
        let (part, values) = grouping.take_both()?;
        let which = part.column(0).as_primitive::<Int64Type>().values().to_vec();
        let made: Vec<&(Key, i64, i64)> = which.iter().map(|id| &merge.made[*id as usize]).collect();
        let mut columns: Vec<ArrayRef> = part.columns().iter().cloned().chain(values).collect();
        columns[0] = ids(made.iter().map(|(_, start, _)| *start).collect());
        let new = layout.batch(columns)?;
        let ends = made.iter().map(|(_, _, last)| last.saturating_add(self.gap)).collect();
        let old = old.map(|rows| SessionRows {
            rows,
            ends: merge.old.iter().map(|span| span.last.saturating_add(self.gap)).collect(),
        });
        self.n_sessions -= merge.old.len();
        self.gone(&merge.old, layout)?;
        self.insert(new.clone(), made.into_iter().cloned().collect(), false);
        if self.n_stored > 2 * self.n_sessions + SLACK {
            self.compact()?;
        }
        Ok(Some(SessionChange { old, new: SessionRows { rows: new, ends } }))
    }

    /// Adds a batch of rows, each with its key, its start and the time of its last row.
    fn insert(&mut self, rows: RecordBatch, spans: Vec<(Key, i64, i64)>, is_saved: bool) {
        let at = self.batches.len();
        self.n_stored += rows.num_rows();
        self.n_sessions += rows.num_rows();
        self.n_bytes += n_bytes(&rows);
        self.batches.push(rows);
        for (row, (key, start, last)) in spans.into_iter().enumerate() {
            self.slices.entry(last.div_euclid(self.slice())).or_default().push(key.clone());
            if !is_saved && !self.unsaved.is_cleared {
                self.unsaved.fresh.push((key.clone(), start));
            }
            self.keys.entry(key).or_default().push(Span { start, last, place: (at, row), is_saved });
        }
    }

    /// The checkpoint is to forget sessions.
    fn gone(&mut self, spans: &[Span], layout: &TableLayout) -> Result<()> {
        let known: Vec<Span> = spans.iter().filter(|span| span.is_saved).copied().collect();
        if let Some(rows) = self.gather(&known)?.filter(|_| !self.unsaved.is_cleared) {
            self.unsaved.n_gone += rows.num_rows();
            self.unsaved.gone.push(rows.project(&(0..layout.n_keys()).collect::<Vec<_>>())?);
        }
        // While nobody asks it must not grow beyond what it would take to begin anew.
        if self.unsaved.fresh.len() + self.unsaved.n_gone > 2 * self.n_sessions + SLACK {
            self.unsaved = Unsaved { is_cleared: true, ..Unsaved::default() };
        }
        Ok(())
    }

    fn slice(&self) -> i64 {
        (self.gap / 8).max(1)
    }

    /// Lets go of the sessions that no row can join any more: about an eighth of the gap later than it could.
    pub(super) fn close(&mut self, watermark: i64, layout: &TableLayout) -> Result<Option<SessionRows>> {
        let mut closed = Vec::new();
        while let Some(slice) = self.slices.first_entry() {
            let end = slice.key().saturating_add(1).saturating_mul((self.gap / 8).max(1));
            if watermark != super::watermark::END && end.saturating_add(self.gap) >= watermark {
                break;
            }
            for key in slice.remove() {
                let Some(spans) = self.keys.get_mut(&key) else { continue };
                closed.extend(spans.extract_if(.., |span| span.last < end));
                if spans.is_empty() {
                    self.keys.remove(&key);
                }
            }
        }
        let rows = self.session_rows(&closed)?;
        self.n_sessions -= closed.len();
        self.gone(&closed, layout)?;
        Ok(rows)
    }

    /// All open sessions.
    pub(super) fn rows(&self) -> Result<Option<SessionRows>> {
        let spans: Vec<Span> = self.keys.values().flatten().copied().collect();
        self.session_rows(&spans)
    }

    fn session_rows(&self, spans: &[Span]) -> Result<Option<SessionRows>> {
        let ends = spans.iter().map(|span| span.last.saturating_add(self.gap)).collect();
        Ok(self.gather(spans)?.map(|rows| SessionRows { rows, ends }))
    }

    fn gather(&self, spans: &[Span]) -> Result<Option<RecordBatch>> {
        if spans.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        let places: Vec<(usize, usize)> = spans.iter().map(|span| span.place).collect();
        Ok(Some(interleave_record_batch(&batches, &places)?))
    }

    fn compact(&mut self) -> Result<()> {
        let spans: Vec<Span> = self.keys.values().flatten().copied().collect();
        let live = self.gather(&spans)?;
        for (row, span) in self.keys.values_mut().flatten().enumerate() {
            span.place = (0, row);
        }
        self.batches = live.map(|rows| tidy(&rows)).transpose()?.into_iter().collect();
        (self.n_stored, self.n_sessions) = (spans.len(), spans.len());
        self.n_bytes = self.batches.iter().map(n_bytes).sum();
        Ok(())
    }

    /// The columns of a checkpoint: those of a row, and when the session ends.
    pub(super) fn state_schema(layout: &TableLayout) -> SchemaRef {
        let mut fields = layout.schema().fields().to_vec();
        fields.push(Arc::new(Field::new("end", DataType::Int64, false)));
        Arc::new(Schema::new(fields))
    }

    /// What is not in the checkpoint, which it will be from now on.
    pub(super) fn take_changed(&mut self, layout: &TableLayout) -> Result<SessionState> {
        let Unsaved { fresh, gone, is_cleared, .. } = std::mem::take(&mut self.unsaved);
        let mut spans = Vec::new();
        let mut take = |span: &mut Span| {
            span.is_saved = true;
            spans.push(*span);
        };
        if is_cleared {
            self.keys.values_mut().flatten().for_each(&mut take);
        } else {
            for (key, start) in fresh {
                let of_key = self.keys.get_mut(&key).into_iter().flatten();
                of_key.filter(|span| span.start == start && !span.is_saved).for_each(&mut take);
            }
        }
        let rows = match self.session_rows(&spans)? {
            Some(SessionRows { rows, ends }) => {
                let mut columns = rows.columns().to_vec();
                columns.push(Arc::new(Int64Array::from(ends)));
                Some(RecordBatch::try_new(Self::state_schema(layout), columns)?)
            }
            None => None,
        };
        Ok(SessionState { is_cleared, gone, rows })
    }

    /// Brings back rows of the checkpoint: the columns of [`Self::state_schema`].
    pub(super) fn restore(&mut self, columns: &[ArrayRef], layout: &TableLayout) -> Result<()> {
        let Some((ends, columns)) = columns.split_last() else {
            return internal_err!("sessions have columns");
        };
        let rows = layout.batch(columns.to_vec())?;
        let keys = self.key_rows(&columns[1..layout.n_keys()])?;
        let starts = columns[0].as_primitive::<Int64Type>().values();
        let ends = ends.as_primitive::<Int64Type>().values();
        let span = |row: usize| (key_of(keys.as_ref(), row), starts[row], ends[row].saturating_sub(self.gap));
        let spans = (0..rows.num_rows()).map(span).collect();
        self.insert(rows, spans, true);
        Ok(())
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.slices.clear();
        self.batches.clear();
        (self.n_stored, self.n_sessions, self.n_bytes) = (0, 0, 0);
        self.unsaved = Unsaved { is_cleared: true, ..Unsaved::default() };
    }

    pub(super) fn n_sessions(&self) -> usize {
        self.n_sessions
    }

    /// About how many bytes they take; the spans count by their number.
    pub(super) fn n_bytes(&self) -> usize {
        self.n_bytes + self.n_sessions * 128
    }

    fn key_rows(&self, columns: &[ArrayRef]) -> Result<Option<Rows>> {
        Ok(self.converter.as_ref().map(|converter| converter.convert_columns(columns)).transpose()?)
    }
}

fn key_of(keys: Option<&Rows>, row: usize) -> Key {
    keys.map_or_else(Key::default, |keys| keys.row(row).as_ref().into())
}

/// Which rows make up which sessions.
#[derive(Debug, Default)]
struct Merge {
    /// The session of each row that was added, by its number in `made`.
    of_added: Vec<i64>,
    /// Sessions that are part of others now, and of which.
    old: Vec<Span>,
    of_old: Vec<i64>,
    /// The sessions that come of it: key, start, time of the last row.
    made: Vec<(Key, i64, i64)>,
}

impl Merge {
    /// Joins a key's new rows to its sessions; returns the sessions that stay as they are.
    fn key(&mut self, key: &Key, spans: Vec<Span>, rows: Vec<(i64, usize)>, gap: i64) -> Vec<Span> {
        enum Item {
            Row(usize),
            Span(Span),
        }
        let mut items: Vec<(i64, i64, Item)> = spans
            .into_iter()
            .map(|span| (span.start, span.last, Item::Span(span)))
            .chain(rows.into_iter().map(|(at, row)| (at, at, Item::Row(row))))
            .collect();
        items.sort_by_key(|(start, ..)| *start);
        let mut left = Vec::new();
        let mut items = items.into_iter().peekable();
        while let Some((start, mut last, item)) = items.next() {
            let mut members = vec![item];
            while let Some((_, end, item)) = items.next_if(|(start, ..)| *start <= last.saturating_add(gap)) {
                last = last.max(end);
                members.push(item);
            }
            if let [Item::Span(span)] = members[..] {
                left.push(span);
                continue;
            }
            let id = self.made.len() as i64;
            for member in members {
                match member {
                    Item::Row(row) => self.of_added[row] = id,
                    Item::Span(span) => {
                        self.old.push(span);
                        self.of_old.push(id);
                    }
                }
            }
            self.made.push((key.clone(), start, last));
        }
        left
    }
}
