//! The second half of a view on one worker: the open windows of the keys that it keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Int64Type;
use datafusion::common::{Result, internal_err};
use logdrive_operators::{ViewRows, WorkerContext};
use logdrive_schemas::Batch;

use super::closed::Closed;
use super::container::Part;
use super::grouping::Grouping;
use super::log::Log;
use super::output::{Rows, Told};
use super::scatter::split;
use super::sessions::{SessionChange, SessionRows, Sessions};
use super::spec::{Aggregation, Spec};
use super::table::{Table, TableLayout, keys_and_values};
use super::windows::Windowing;
use super::{Emit, SqlView};

/// The only window of a view without windows.
pub(super) const ALWAYS: i64 = 0;

/// Stands for a window in what all sessions have in common.
const SESSIONS: i64 = 0;

/// What an epoch brings forth.
#[derive(Debug, Default)]
pub(super) struct Emitted {
    pub(super) rows: Vec<Batch>,
    /// Groups whose row failed an expression.
    pub(super) failed: Vec<Batch>,
}

pub(super) enum Open {
    Final(BTreeMap<i64, Log>),
    Changes(BTreeMap<i64, Table>, TableLayout),
    Sessions(Box<Sessions>, TableLayout),
}

/// The open windows.
pub(super) struct Keep {
    pub(super) view: Arc<SqlView>,
    pub(super) spec: Arc<Spec>,
    pub(super) cx: WorkerContext,
    pub(super) rows: Rows,
    pub(super) grouping: Grouping,
    pub(super) open: Open,
    pub(super) closed: Closed,
    /// Windows that the checkpoint has, and that are no longer open.
    pub(super) gone: Vec<i64>,
    /// What an earlier view has in the checkpoint does not count any more.
    pub(super) clears: bool,
    /// The watermark at the end of the epochs that are complete.
    pub(super) watermark: i64,
}

impl Keep {
    pub(super) fn new(view: &Arc<SqlView>, cx: &WorkerContext) -> Result<Self> {
        let Some(aggregation) = &view.spec.aggregation else {
            return internal_err!("a view without aggregation keeps nothing");
        };
        let tells_changes = view.options.emit == Emit::Changes;
        let open = match aggregation.windows {
            Some((Windowing::Session { gap }, _)) => {
                let layout = TableLayout::new(aggregation)?;
                Open::Sessions(Box::new(Sessions::new(gap, &layout)?), layout)
            }
            _ if tells_changes => Open::Changes(BTreeMap::new(), TableLayout::new(aggregation)?),
            _ => Open::Final(BTreeMap::new()),
        };
        Ok(Self {
            view: Arc::clone(view),
            spec: Arc::clone(&view.spec),
            cx: cx.clone(),
            rows: Rows::new(&view.name, &view.spec, tells_changes),
            grouping: Grouping::new(aggregation)?,
            open,
            closed: Closed::default(),
            gone: Vec::new(),
            clears: false,
            watermark: i64::MIN,
        })
    }

    /// What a query without GROUP BY has a row of before the first row comes, if it is this worker that keeps it and it is
    /// not there.
    pub(super) fn of_no_rows(&mut self) -> Result<Option<Part>> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(None) };
        if aggregation.windows.is_some() || !aggregation.keys.is_empty() || self.n_rows() > 0 {
            return Ok(None);
        }
        let parts = split(self.grouping.of_no_rows(aggregation)?, aggregation, self.cx.peers)?;
        Ok(parts.into_iter().find(|part| part.worker == self.cx.index as u64))
    }

    /// Takes in an epoch: its parts, and the watermark at its end.
    pub(super) fn epoch(&mut self, epoch: u64, parts: Vec<Part>, bar: Option<i64>) -> Result<Emitted> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(Emitted::default()) };
        let mut emitted = Emitted::default();
        let by_window = self.by_window(aggregation, &parts)?;
        match &mut self.open {
            Open::Final(logs) => {
                for (window, parts) in by_window {
                    let log = logs.entry(window).or_default();
                    for part in parts {
                        log.push(part, window, &mut self.grouping)?;
                    }
                }
            }
            Open::Changes(tables, layout) => {
                for (window, parts) in by_window {
                    let table = tables.entry(window).or_default();
                    let Some(change) = table.apply(&parts, window, layout, &mut self.grouping)? else {
                        continue;
                    };
                    let told = [(change.old, Told::Delete(epoch)), (Some(change.new), Told::Insert(epoch))];
                    for (rows, told) in told {
                        let Some(rows) = rows else { continue };
                        let (keys, values) = keys_and_values(&rows, layout);
                        self.rows.of_groups(
                            aggregation,
                            window,
                            (&keys, &values),
                            None,
                            told,
                            epoch,
                            &mut emitted,
                        )?;
                    }
                }
            }
            Open::Sessions(sessions, layout) => {
                let parts: Vec<RecordBatch> = parts.into_iter().map(|part| part.rows).collect();
                let change = sessions.apply(&parts, layout, &mut self.grouping)?;
                if let (Some(SessionChange { old, new }), Emit::Changes) = (change, self.view.options.emit) {
                    for (rows, told) in [(old, Told::Delete(epoch)), (Some(new), Told::Insert(epoch))] {
                        let Some(SessionRows { rows, ends }) = rows else { continue };
                        let (keys, values) = keys_and_values(&rows, layout);
                        let groups: (&[ArrayRef], &[ArrayRef]) = (&keys, &values);
                        self.rows.of_groups(
                            aggregation,
                            SESSIONS,
                            groups,
                            Some(&ends),
                            told,
                            epoch,
                            &mut emitted,
                        )?;
                    }
                }
            }
        }
        self.watermark = self.watermark.max(bar.unwrap_or(i64::MIN));
        self.close(aggregation, epoch, &mut emitted)?;
        Ok(emitted)
    }

    /// The parts of each window that is open.
    fn by_window(
        &self,
        aggregation: &Aggregation,
        parts: &[Part],
    ) -> Result<BTreeMap<i64, Vec<RecordBatch>>> {
        let mut by_window: BTreeMap<i64, Vec<RecordBatch>> = BTreeMap::new();
        let windows = match aggregation.windows {
            Some((Windowing::Session { .. }, _)) => return Ok(by_window),
            Some((Windowing::Fixed(windows), _)) => Some(windows),
            None => None,
        };
        for part in parts {
            for (pane, rows) in by_pane(&part.rows, 0)? {
                let Some(windows) = windows else {
                    by_window.entry(ALWAYS).or_default().push(rows);
                    continue;
                };
                let open = windows
                    .of_pane(pane)
                    .take_while(|start| start.saturating_add(windows.size) > self.watermark);
                for start in open {
                    by_window.entry(start).or_default().push(rows.clone());
                }
            }
        }
        Ok(by_window)
    }

    /// Lets go of the windows that are complete.
    fn close(&mut self, aggregation: &Aggregation, epoch: u64, emitted: &mut Emitted) -> Result<()> {
        let is_end = self.watermark == super::watermark::END;
        let size = match aggregation.windows {
            Some((Windowing::Fixed(windows), _)) => Some(windows.size),
            _ => None,
        };
        let watermark = self.watermark;
        let is_closed =
            |start: &i64| size.is_some_and(|size| is_end || start.saturating_add(size) <= watermark);
        match &mut self.open {
            Open::Final(logs) => {
                while let Some(entry) = logs.first_entry().filter(|entry| is_closed(entry.key())) {
                    let (window, log) = entry.remove_entry();
                    self.gone.extend(log.is_saved().then_some(window));
                    let (keys, values) = log.values(window, &mut self.grouping)?;
                    let groups: (&[ArrayRef], &[ArrayRef]) = (&keys, &values);
                    let n_before = emitted.rows.len();
                    self.rows.of_groups(aggregation, window, groups, None, Told::Final, epoch, emitted)?;
                    self.closed.push(window, &emitted.rows[n_before..]);
                }
            }
            Open::Changes(tables, layout) => {
                while let Some(entry) = tables.first_entry().filter(|entry| is_closed(entry.key())) {
                    let (window, mut table) = entry.remove_entry();
                    self.gone.extend(table.is_saved().then_some(window));
                    table.compact(layout)?;
                    let mut rows = Emitted::default();
                    for batch in table.batches() {
                        let (keys, values) = keys_and_values(batch, layout);
                        self.rows.of_groups(
                            aggregation,
                            window,
                            (&keys, &values),
                            None,
                            Told::Final,
                            epoch,
                            &mut rows,
                        )?;
                    }
                    self.closed.push(window, &rows.rows);
                }
            }
            Open::Sessions(sessions, layout) => {
                if let Some(SessionRows { rows, ends }) = sessions.close(watermark, layout)? {
                    let (keys, values) = keys_and_values(&rows, layout);
                    let mut rows = Emitted::default();
                    let groups: (&[ArrayRef], &[ArrayRef]) = (&keys, &values);
                    self.rows.of_groups(
                        aggregation,
                        SESSIONS,
                        groups,
                        Some(&ends),
                        Told::Final,
                        epoch,
                        &mut rows,
                    )?;
                    self.closed.push(ends.into_iter().max().unwrap_or(watermark), &rows.rows);
                    if self.view.options.emit == Emit::Final {
                        emitted.rows.append(&mut rows.rows);
                        emitted.failed.append(&mut rows.failed);
                    }
                }
            }
        }
        let options = &self.view.options;
        let retain = i64::try_from(options.retain.as_micros()).unwrap_or(i64::MAX);
        let oldest = watermark.saturating_sub(retain).saturating_sub(size.unwrap_or(0));
        let max_bytes = usize::try_from(options.max_bytes).unwrap_or(usize::MAX) / self.cx.peers / 2;
        self.closed.trim(if is_end { i64::MIN } else { oldest }, max_bytes);
        Ok(())
    }

    /// The view's rows on this worker: of the windows that are open, and of those that closed not long ago.
    pub(super) fn snapshot(&mut self) -> Result<ViewRows> {
        let spec = Arc::clone(&self.spec);
        let Some(aggregation) = &spec.aggregation else { return Ok(ViewRows::default()) };
        let mut open = Emitted::default();
        match &mut self.open {
            Open::Final(logs) => {
                for (window, log) in logs {
                    let (keys, values) = log.values(*window, &mut self.grouping)?;
                    self.rows.of_groups(
                        aggregation,
                        *window,
                        (&keys, &values),
                        None,
                        Told::Final,
                        0,
                        &mut open,
                    )?;
                }
            }
            Open::Changes(tables, layout) => {
                for (window, table) in tables {
                    table.compact(layout)?;
                    for batch in table.batches() {
                        let (keys, values) = keys_and_values(batch, layout);
                        self.rows.of_groups(
                            aggregation,
                            *window,
                            (&keys, &values),
                            None,
                            Told::Final,
                            0,
                            &mut open,
                        )?;
                    }
                }
            }
            Open::Sessions(sessions, layout) => {
                if let Some(SessionRows { rows, ends }) = sessions.rows()? {
                    let (keys, values) = keys_and_values(&rows, layout);
                    let groups: (&[ArrayRef], &[ArrayRef]) = (&keys, &values);
                    self.rows.of_groups(
                        aggregation,
                        SESSIONS,
                        groups,
                        Some(&ends),
                        Told::Final,
                        0,
                        &mut open,
                    )?;
                }
            }
        }
        let open = open.rows.iter().map(|batch| batch.rows().clone()).collect();
        let mut rows = ViewRows::from(self.closed.rows().collect::<Vec<_>>());
        match self.view.options.emit {
            Emit::Changes => rows.told.extend::<Vec<_>>(open),
            Emit::Final => rows.untold = open,
        }
        Ok(rows)
    }

    /// The rows that the state has.
    pub(super) fn n_rows(&self) -> usize {
        match &self.open {
            Open::Final(logs) => logs.values().map(Log::n_rows).sum(),
            Open::Changes(tables, _) => tables.values().map(Table::n_rows).sum(),
            Open::Sessions(sessions, _) => sessions.n_sessions(),
        }
    }

    /// About how many bytes the state takes.
    pub(super) fn n_bytes(&self) -> usize {
        let open: usize = match &self.open {
            Open::Final(logs) => logs.values().map(Log::n_bytes).sum(),
            Open::Changes(tables, _) => tables.values().map(Table::n_bytes).sum(),
            Open::Sessions(sessions, _) => sessions.n_bytes(),
        };
        open + self.closed.n_bytes()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.closed = Closed::default();
        self.gone.clear();
        match &mut self.open {
            Open::Final(logs) => logs.clear(),
            Open::Changes(tables, _) => tables.clear(),
            Open::Sessions(sessions, _) => sessions.clear(),
        }
    }
}

/// The rows of each pane, or of what else is in this column.
pub(super) fn by_pane(rows: &RecordBatch, column: usize) -> Result<Vec<(i64, RecordBatch)>> {
    let panes = rows.column(column).as_primitive::<Int64Type>();
    let Some(first) = panes.values().first().copied() else { return Ok(Vec::new()) };
    if panes.values().iter().all(|pane| *pane == first) {
        return Ok(vec![(first, rows.clone())]);
    }
    let mut indices: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for (row, pane) in panes.values().iter().enumerate() {
        indices.entry(*pane).or_default().push(row as u32);
    }
    indices
        .into_iter()
        .map(|(pane, rows_of)| Ok((pane, take_record_batch(rows, &UInt32Array::from(rows_of))?)))
        .collect()
}
