//! Runs a query as a view in a dataflow of its own, and over a table with DataFusion.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{cast, max};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use logdrive_operators::flow::Changes;
use logdrive_operators::{
    Batches, Checkpoint, CompileError, DetectorCounters, Lifecycle, Snapshots, View, ViewInput, ViewOutput,
    ViewRows, WorkerContext,
};
use logdrive_queries::Functions;
use logdrive_queries::views::{self, Emit, ViewOptions};
use logdrive_schemas::Batch;
use timely::container::NoopBuilder;
use timely::dataflow::operators::{Input, InspectCore, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};

use crate::events::{Epoch, TABLES, schema, table};
use crate::queries::Query;

/// How far the input may be ahead of the results, in epochs.
const AHEAD: usize = 4;

/// An epoch, and what comes in it into each table that a view reads.
pub type Tick = (u64, Vec<Batches>);

/// What a run took, and brought.
#[derive(Debug, Default)]
pub struct Outcome {
    /// User and system time of the process.
    pub cpu: Duration,
    /// By the clock.
    pub wall: Duration,
    /// Rows that left the view, each insertion and each deletion.
    pub n_changes: usize,
    /// The result, a row in a line, in the order of these.
    pub rows: Vec<String>,
    /// Why the view stopped, if it did.
    pub stopped: Option<String>,
}

/// Nobody asks, nothing is kept.
#[derive(Debug, Default)]
struct Quiet {
    stopped: Mutex<Option<String>>,
}

impl Checkpoint for Quiet {
    fn next_cut(&self, _: u64) -> u64 {
        u64::MAX
    }

    fn put(&self, _: &str, _: usize, _: u64, _: Vec<u8>) {}

    fn put_changes(&self, _: &str, _: usize, _: u64, _: Changes) {}

    fn restored_rows(
        &self,
        _: &str,
        _: u64,
        _: &str,
        _: Range<u16>,
    ) -> Box<dyn Iterator<Item = RecordBatch> + '_> {
        Box::new(std::iter::empty())
    }

    fn restored(&self, _: &str) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

impl DetectorCounters for Quiet {
    fn finding(&self, _: &str, _: &str) {}

    fn late(&self, _: &str, _: usize) {}

    fn view_stopped(&self, _: &str, reason: &str) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }

    fn state_rows(&self, _: &str, _: usize, _: usize) {}
}

impl Snapshots for Quiet {
    fn is_due(&self, _: &str, _: usize, _: u64) -> bool {
        false
    }

    fn answer(&self, _: &str, _: usize, _: u64, _: Result<ViewRows, String>) {}

    fn reached(&self, _: &str, _: i64, _: Option<(&str, u64)>) {}
}

impl Lifecycle for Quiet {
    fn is_stopping(&self) -> bool {
        false
    }
}

/// Compiles a query as a view; with the tables that it reads, by number.
///
/// # Errors
/// If views cannot compute it.
pub fn plan(query: &Query) -> Result<(Arc<dyn View>, Vec<usize>), CompileError> {
    let options = ViewOptions {
        name: query.name.into(),
        emit: if query.name == "q11" { Emit::Final } else { Emit::Changes },
        lateness: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(3600),
        max_bytes: 16 << 30,
        retain: Duration::from_secs(365 * 24 * 3600),
        unbounded: true,
        functions: Functions::default(),
    };
    let names = views::tables(query.view);
    let tables: Vec<_> = names.iter().map(|name| table(name)).collect();
    let view = views::plan(query.view, &tables, options)?;
    let place = |name: &String| TABLES.iter().position(|table| table == name);
    Ok((view, names.iter().filter_map(place).collect()))
}

/// Runs a view over `epochs` on so many workers. The result is put together if `keeps` is given.
///
/// # Panics
/// If a worker does.
#[must_use]
pub fn run(view: &Arc<dyn View>, tables: &[usize], epochs: &[Epoch], workers: usize, keeps: bool) -> Outcome {
    let found: Arc<Mutex<(usize, Vec<RecordBatch>)>> = Arc::default();
    let inputs: Arc<Vec<Tick>> = Arc::new(timed(epochs, tables));
    let of_rows = Arc::clone(&found);
    let take = move |batch: &RecordBatch| {
        let mut found = of_rows.lock().unwrap_or_else(PoisonError::into_inner);
        found.0 += batch.num_rows();
        if keeps {
            found.1.push(batch.clone());
        }
    };
    let feed = move || {
        let inputs = Arc::clone(&inputs);
        (0..inputs.len()).map(move |idx| inputs[idx].clone())
    };
    let (cpu, start) = (cpu(), Instant::now());
    let stopped = drive(view, tables.len(), workers, feed, take);
    let (cpu, wall) = (self::cpu().saturating_sub(cpu), start.elapsed());
    let (n_changes, rows) = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Outcome { cpu, wall, n_changes, rows: settled(&rows), stopped }
}

/// Runs a view in a dataflow of its own, until what `feed` gives each worker is worked off. Every batch of changes goes
/// to `take`. Returns why the view stopped, if it did.
///
/// # Panics
/// If a worker does.
pub fn drive<I: Iterator<Item = Tick>>(
    view: &Arc<dyn View>,
    n_tables: usize,
    workers: usize,
    feed: impl Fn() -> I + Send + Sync + 'static,
    take: impl Fn(&RecordBatch) + Send + Sync + 'static,
) -> Option<String> {
    let quiet: Arc<Quiet> = Arc::default();
    let (of_view, context, take) = (Arc::clone(view), Arc::clone(&quiet), Arc::new(take));
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let mut handles: Vec<_> =
            (0..n_tables).map(|_| InputHandle::<u64, NoopBuilder<Batches>>::new_with_builder()).collect();
        let probe = ProbeHandle::new();
        let (index, peers) = (worker.index(), worker.peers());
        let cx = WorkerContext {
            index,
            peers,
            checkpoint: Arc::<Quiet>::clone(&context) as _,
            counters: Arc::<Quiet>::clone(&context) as _,
            lifecycle: Arc::<Quiet>::clone(&context) as _,
            snapshots: Arc::<Quiet>::clone(&context) as _,
        };
        let take = Arc::clone(&take);
        worker.dataflow::<u64, _, _>(|scope| {
            let inputs = handles.iter_mut().map(|handle| scope.input_from(handle));
            let inputs = inputs.map(|rows| ViewInput { rows, beginning: None }).collect();
            let ViewOutput { rows, rejects, .. } = of_view.attach(inputs, &cx);
            rows.inspect_container(move |event| {
                if let Ok((_, batches)) = event {
                    batches.0.iter().for_each(|batch| take(batch.rows()));
                }
            })
            .probe_with(&probe);
            rejects.probe_with(&probe);
        });
        let mut behind = std::collections::VecDeque::new();
        for (n, (epoch, mut batches)) in feed().enumerate() {
            handles.iter_mut().for_each(|handle| handle.advance_to(epoch));
            if n % peers == index {
                for (handle, batches) in handles.iter_mut().zip(&mut batches) {
                    handle.send_batch(batches);
                }
            }
            behind.push_back(epoch);
            if behind.len() > AHEAD
                && let Some(oldest) = behind.pop_front()
            {
                worker.step_while(|| probe.less_equal(&oldest));
            }
        }
        drop(handles);
        worker.step_while(|| !probe.done());
    });
    guards.expect("threads can be started").join().into_iter().for_each(|worker| worker.expect("no panic"));
    quiet.stopped.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Each epoch at the time of its newest event, for rows that are far ahead of the clock are not believed.
fn timed(epochs: &[Epoch], tables: &[usize]) -> Vec<Tick> {
    let mut last = 0;
    let timed = epochs.iter().map(|epoch| {
        last = newest(epoch.iter().flatten()).max(last + 1);
        let of = |table: &usize| Batches(epoch[*table].iter().cloned().collect());
        (last, tables.iter().map(of).collect())
    });
    timed.collect()
}

/// The epoch just after the newest of some rows.
pub(crate) fn newest<'a>(batches: impl Iterator<Item = &'a Batch>) -> u64 {
    let times = batches.filter_map(|batch| {
        max(batch.rows().column_by_name("date_time")?.as_primitive::<TimestampMicrosecondType>())
    });
    times.max().unwrap_or(0).cast_unsigned() / 1_000 + 1
}

/// What is left when all changes are applied.
fn settled(rows: &[RecordBatch]) -> Vec<String> {
    let mut left: BTreeMap<String, i64> = BTreeMap::new();
    for rows in rows {
        let change = rows.column_by_name("_change").map(|change| change.as_string_view().clone());
        let n_columns = rows.num_columns() - if change.is_some() { 2 } else { 0 };
        let columns: Vec<usize> = (0..n_columns).collect();
        let Ok(shown) = rows.project(&columns) else { continue };
        for (row, text) in formatted(&shown).into_iter().enumerate() {
            let is_deletion = change.as_ref().is_some_and(|change| change.value(row) == "delete");
            *left.entry(text).or_default() += if is_deletion { -1 } else { 1 };
        }
    }
    let copies = |(row, n): (String, i64)| std::iter::repeat_n(row, usize::try_from(n).unwrap_or(0));
    left.into_iter().flat_map(copies).collect()
}

/// Rows as text. Floats are cut short: a sum in another order differs in the last digits.
fn formatted(rows: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns = rows.columns().iter().map(|column| match column.data_type() {
        DataType::Float64 | DataType::Decimal128(..) => {
            cast(column, &DataType::Float32).expect("a number is a number")
        }
        _ => Arc::clone(column),
    });
    let columns: Vec<_> = columns.collect();
    let formats: Vec<_> = columns
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).expect("every column has a text"))
        .collect();
    (0..rows.num_rows())
        .map(|row| formats.iter().map(|f| f.value(row).to_string()).collect::<Vec<_>>().join("|"))
        .collect()
}

/// DataFusion's answer over all rows at once, on one core.
///
/// # Errors
/// If DataFusion fails.
pub fn batch(query: &Query, epochs: &[Epoch], keeps: bool) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| exec_datafusion_err!("no runtime: {error}"))?;
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for (idx, name) in TABLES.iter().enumerate() {
        let rows = epochs.iter().filter_map(|epoch| epoch[idx].as_ref().map(|batch| batch.rows().clone()));
        let table = MemTable::try_new(schema(name), vec![rows.collect()])?;
        context.register_table(*name, Arc::new(table))?;
    }
    let (cpu, start) = (cpu(), Instant::now());
    let answer = runtime.block_on(async { context.sql(query.over_tables()).await?.collect().await })?;
    let (cpu, wall) = (self::cpu().saturating_sub(cpu), start.elapsed());
    let n_changes = answer.iter().map(RecordBatch::num_rows).sum();
    let mut rows: Vec<String> = if keeps { answer.iter().flat_map(formatted).collect() } else { Vec::new() };
    rows.sort_unstable();
    Ok::<_, DataFusionError>(Outcome { cpu, wall, n_changes, rows, stopped: None })
}

/// User and system time of this process, to a hundredth of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string(Path::new("/proc/self/stat")).unwrap_or_default();
    // The name of the process may have blanks; it ends with the last bracket.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |idx: usize| fields.get(idx).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
