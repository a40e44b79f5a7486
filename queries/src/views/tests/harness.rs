//! Runs a view in a real dataflow: rows in random order and epochs, on any number of workers, with crashes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use logdrive_operators::flow::{Changes, TablesInMemory};
use logdrive_operators::{
    Batches, Checkpoint, DetectorCounters, Lifecycle, Snapshots, View, ViewInput, ViewOutcome, ViewOutput,
    ViewRows, WorkerContext,
};
use logdrive_schemas::Batch;
use timely::container::NoopBuilder;
use timely::dataflow::operators::{Input, InspectCore, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};

/// Batches by epoch.
pub(super) type Epochs = BTreeMap<u64, Vec<Batch>>;

/// The source that feeds an input.
pub(super) fn source_of(input: usize) -> String {
    if input == 0 { "in".into() } else { format!("in{input}") }
}

/// State of operators by cut.
pub(super) type States = BTreeMap<u64, BTreeMap<String, Vec<Vec<u8>>>>;

/// Between two cuts, in epochs.
pub(super) const CUT_EVERY: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) rows: Vec<(u64, RecordBatch)>,
    pub(super) ids: Vec<String>,
    pub(super) n_rejects: usize,
    /// How many rows each worker keeps.
    pub(super) n_kept: BTreeMap<usize, usize>,
    pub(super) counts: BTreeMap<&'static str, usize>,
    pub(super) stopped: Option<String>,
    /// The watermark, and what holds it back.
    pub(super) reached: (i64, Option<(String, u64)>),
    /// What each worker answered a reader.
    pub(super) snapshot: BTreeMap<usize, Vec<RecordBatch>>,
    pub(super) states: States,
    /// What was handed in at each cut, by operator.
    pub(super) changes: BTreeMap<u64, Vec<(String, Changes)>>,
    /// The tables that it began with.
    pub(super) began_with: BTreeMap<String, TablesInMemory>,
}

impl Outcome {
    /// The tables at a cut.
    pub(super) fn tables(&self, cut: u64) -> BTreeMap<String, TablesInMemory> {
        let mut tables = self.began_with.clone();
        for (operator, changes) in self.changes.range(..=cut).flat_map(|(_, changes)| changes) {
            tables.entry(operator.clone()).or_default().apply(changes).unwrap();
        }
        tables
    }

    /// The newest cut before `epoch` that every instance handed in.
    pub(super) fn cut_before(&self, epoch: u64, n_parts: usize) -> Option<u64> {
        let whole = self
            .states
            .iter()
            .filter(|(cut, states)| **cut < epoch && states.values().map(Vec::len).sum::<usize>() == n_parts);
        whole.map(|(cut, _)| *cut).max()
    }
}

#[derive(Debug)]
struct Shared {
    restored: BTreeMap<String, Vec<Vec<u8>>>,
    tables: BTreeMap<String, TablesInMemory>,
    crashes: bool,
    read_at: Option<u64>,
    outcome: Mutex<Outcome>,
    failed: AtomicBool,
}

impl Shared {
    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// Says on the way out of a panic that the others need not wait for this worker.
struct Panicking(Arc<Shared>);

impl Drop for Panicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
    }
}

impl Checkpoint for Shared {
    fn next_cut(&self, epoch: u64) -> u64 {
        epoch.div_ceil(CUT_EVERY) * CUT_EVERY
    }

    fn put(&self, operator: &str, _: usize, cut: u64, state: Vec<u8>) {
        let mut outcome = self.outcome.lock().unwrap();
        outcome.states.entry(cut).or_default().entry(operator.to_owned()).or_default().push(state);
    }

    /// Some cuts are skipped, as if the disk were slow.
    fn wants(&self, cut: u64, _: u64) -> bool {
        cut / CUT_EVERY % 3 != 1
    }

    fn put_changes(&self, operator: &str, worker: usize, cut: u64, changes: Changes) {
        self.put(operator, worker, cut, changes.state.clone());
        let mut outcome = self.outcome.lock().unwrap();
        outcome.changes.entry(cut).or_default().push((operator.to_owned(), changes));
    }

    fn restored_rows(
        &self,
        operator: &str,
        _: u64,
        table: &str,
        shards: Range<u16>,
    ) -> Box<dyn Iterator<Item = RecordBatch> + '_> {
        let rows = self.tables.get(operator).and_then(|tables| tables.rows(table, &shards).unwrap());
        Box::new(rows.filter(|rows| rows.num_rows() > 0).into_iter())
    }

    fn restored(&self, operator: &str) -> Vec<Vec<u8>> {
        self.restored.get(operator).cloned().unwrap_or_default()
    }
}

impl DetectorCounters for Shared {
    fn finding(&self, _: &str, _: &str) {}

    fn late(&self, _: &str, _: usize) {}

    fn view_rows(&self, _: &str, outcome: ViewOutcome, n_rows: usize) {
        *self.outcome.lock().unwrap().counts.entry(outcome.name()).or_default() += n_rows;
    }

    fn view_stopped(&self, _: &str, reason: &str) {
        self.outcome.lock().unwrap().stopped = Some(reason.to_owned());
    }

    fn state_rows(&self, _: &str, worker: usize, n_rows: usize) {
        self.outcome.lock().unwrap().n_kept.insert(worker, n_rows);
    }
}

impl Snapshots for Shared {
    fn is_due(&self, view: &str, _: usize, epoch: u64) -> bool {
        // What is within a view is not asked.
        view == "v" && self.read_at.is_some_and(|at| at <= epoch)
    }

    fn answer(&self, _: &str, worker: usize, _: u64, rows: Result<ViewRows, String>) {
        let mut outcome = self.outcome.lock().unwrap();
        // The first answer of each worker is the one that was asked for.
        outcome.snapshot.entry(worker).or_insert_with(|| {
            let ViewRows { told: mut all, mut untold } = rows.unwrap();
            all.append(&mut untold);
            all
        });
    }

    fn reached(&self, _: &str, watermark: i64, held_back_by: Option<(&str, u64)>) {
        let held_back_by = held_back_by.map(|(source, partition)| (source.to_owned(), partition));
        self.outcome.lock().unwrap().reached = (watermark, held_back_by);
    }
}

impl Lifecycle for Shared {
    fn is_stopping(&self) -> bool {
        self.crashes
    }
}

/// How a view is run.
pub(super) struct Run<'a> {
    pub(super) view: &'a Arc<dyn View>,
    pub(super) workers: usize,
    /// The end of input is a stop.
    pub(super) crashes: bool,
    /// The epoch before which somebody reads the view.
    pub(super) read_at: Option<u64>,
    /// The state to begin with: an earlier run, and the cut.
    pub(super) restored: Option<(&'a Outcome, u64)>,
}

impl Run<'_> {
    pub(super) fn go(self, epochs: &Epochs) -> Outcome {
        let restored = self.restored.map(|(outcome, cut)| outcome.states[&cut].clone()).unwrap_or_default();
        let tables = self.restored.map(|(outcome, cut)| outcome.tables(cut)).unwrap_or_default();
        let shared = Arc::new(Shared {
            restored,
            tables: tables.clone(),
            crashes: self.crashes,
            read_at: self.read_at,
            outcome: Mutex::default(),
            failed: AtomicBool::default(),
        });
        let (runtime, epochs, view) = (Arc::clone(&shared), epochs.clone(), Arc::clone(self.view));
        let guards = timely::execute(timely::Config::process(self.workers), move |worker| {
            let _panicking = Panicking(Arc::clone(&runtime));
            let n_inputs = view.reads().len();
            let mut inputs: Vec<_> =
                (0..n_inputs).map(|_| InputHandle::<u64, NoopBuilder<Batches>>::new_with_builder()).collect();
            let sources: Vec<String> = (0..n_inputs).map(source_of).collect();
            let probe = ProbeHandle::new();
            let (index, peers) = (worker.index(), worker.peers());
            let cx = WorkerContext {
                index,
                peers,
                checkpoint: Arc::<Shared>::clone(&runtime) as _,
                counters: Arc::<Shared>::clone(&runtime) as _,
                lifecycle: Arc::<Shared>::clone(&runtime) as _,
                snapshots: Arc::<Shared>::clone(&runtime) as _,
            };
            worker.dataflow::<u64, _, _>(|scope| {
                let read = inputs.iter_mut().map(|input| scope.input_from(input));
                let read = read.map(|rows| ViewInput { rows, beginning: None }).collect();
                let ViewOutput { rows, rejects, .. } = view.attach(read, &cx);
                let (of_rows, of_rejects) = (Arc::clone(&runtime), Arc::clone(&runtime));
                rows.inspect_container(move |event| {
                    if let Ok((epoch, batches)) = event {
                        let mut outcome = of_rows.outcome.lock().unwrap();
                        for batch in &batches.0 {
                            outcome.rows.push((*epoch, batch.rows().clone()));
                            outcome.ids.extend((0..batch.num_rows()).map(|row| batch.id(row)));
                        }
                    }
                })
                .probe_with(&probe);
                rejects
                    .inspect_container(move |event| {
                        if let Ok((_, batches)) = event {
                            let n_rows: usize = batches.0.iter().map(Batch::num_rows).sum();
                            of_rejects.outcome.lock().unwrap().n_rejects += n_rows;
                        }
                    })
                    .probe_with(&probe);
            });
            for (n, (epoch, batches)) in epochs.iter().enumerate() {
                // Workers drift apart, but not for ever.
                if n % (3 + index) == 0 {
                    worker.step_while(|| {
                        probe.less_than(&(epoch - 500))
                            && probe.less_than(inputs[0].time())
                            && !runtime.has_failed()
                    });
                }
                inputs.iter_mut().for_each(|input| input.advance_to(*epoch));
                for (idx, batch) in batches.iter().enumerate() {
                    if (n + idx) % peers == index {
                        let source = &*batch.origin().source;
                        let input = sources.iter().position(|name| name == source).unwrap();
                        inputs[input].send_batch(&mut Batches(vec![batch.clone()]));
                    }
                }
                // Without a step the frontier jumps over several epochs at once.
                if epoch % 3 == 0 {
                    worker.step();
                }
            }
            inputs.into_iter().for_each(InputHandle::close);
            worker.step_while(|| !probe.done() && !runtime.has_failed());
            if runtime.has_failed() {
                // Else timely waits for what no worker will finish.
                worker.installed_dataflows().into_iter().for_each(|idx| worker.drop_dataflow(idx));
            }
        })
        .unwrap();
        guards.join().into_iter().for_each(|result| result.unwrap());
        let mut outcome = std::mem::take(&mut *shared.outcome.lock().unwrap());
        outcome.began_with = tables;
        outcome
    }
}
